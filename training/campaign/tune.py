"""The search for better settings of a campaign's members with Optuna: TPE, and pruning by the score of each epoch.

A study lives in a data base and is gone on with by whoever opens it: after a stop, or beside others. One trial is in
`trial`, the picture of a study in `tune_plot`. Optuna (MIT) is the extra `tune`; nothing else here needs it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from backends import installed
from config import load, usage
from config.errors import BackendUnavailable, CheckpointError, ConfigError, Diverged, Interrupted, OutOfMemory
from config.members import Member
from config.places import atomic_write
from config.schema import Settings
from config.sections.tune import Search
from config.text import counted
from data.rng import philox_seed
from training.campaign import queue, trial
from training.campaign.members import Campaign
from training.campaign.start import open_shared
from training.policy.stopping import HIGHER_IS_BETTER
from training.run.prepare import SharedData

if TYPE_CHECKING:
    import optuna

FOLDER = "tune"
_INSTALL = 'tuning needs optuna, not installed here; run: pip install -e ".[tune]"'
_WORKER = "worker"
# Settings that no trial depends on, or that all of a campaign share.
_ELSEWHERE = ("out", "name", "resume", "resume_anyway", "checkpoint", "tta", "folds", "track", "ensemble")


@dataclass(frozen=True)
class Found:
    """The best trial of a member: what it tried, its score, and the member's settings with that."""

    member: Member
    values: dict[str, Any]
    score: float
    trials: int


def search(campaign: Campaign, wanted: list[Member]) -> list[Found]:
    """Search until each wanted member's study has `tune.trials` trials; the best of each.

    Raises `Interrupted` where a stop was asked for, `ConfigError` for a space or a storage that cannot be used, and
    `CheckpointError` where no trial of a member came to a score.
    """
    if not installed("optuna"):
        raise BackendUnavailable(_INSTALL)
    for member in wanted:
        _check_space(member.settings)
    shared = open_shared(campaign)
    for member in wanted:
        if member.settings.tune.fold not in shared.numbers:
            raise ConfigError(f"tune.fold: there is no fold {member.settings.tune.fold}; there are {shared.numbers}")
    return [_Study(campaign, member, shared).run() for member in wanted]


def key(members: list[Member]) -> str:
    """What tells apart the searches of a campaign: settings, spaces and numbers of trials."""
    parts = [[member.name, _digest(member.settings), member.settings.tune.trials] for member in members]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class _Lost(Exception):
    """Another machine trains this trial, as this process did not answer."""


class _Study:
    """The search for one member."""

    def __init__(self, campaign: Campaign, member: Member, shared: SharedData):
        self.campaign, self.member, self.shared = campaign, member, shared
        self.settings, self.proxy = member.settings, trial.proxy(member.settings)
        self.metric = self.settings.stopping.metric
        self.folder = campaign.folder / FOLDER / member.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.study = self._open()

    def run(self) -> Found:
        """All trials that are left, with whichever processes help, then the table and the picture of all, and the best.

        Raises `CheckpointError` where the data base no longer answers.
        """
        from training.campaign import tune_storage

        with tune_storage.lasting(self._storage):
            while self._counted() < self.settings.tune.trials:
                if self.campaign.stop_requested():
                    raise Interrupted(self.campaign.folder)
                self._try_one()
        with queue.alone(self.folder, self.campaign.stop_requested, quiet=True):
            self._write()
        try:
            best = self.study.best_trial
        except ValueError as error:
            raise CheckpointError(
                f"{self.folder}: none of {counted(self._counted(), 'trial')} came to a score; narrow tune.space"
            ) from error
        tuned = trial.applied(self.settings, best.params)
        return Found(replace(self.member, settings=tuned), best.params, float(best.value or 0), self._counted())

    @property
    def _storage(self) -> str:
        """The data base, with names of variables in place of secrets."""
        return self.settings.tune.storage or f"sqlite:///{self.campaign.folder / FOLDER / 'study.db'}"

    def _try_one(self) -> None:
        """One trial, where fewer than are wanted have ended or run; else wait for those of others, of which one may
        fail. One process at a time looks and begins, so that there are exactly as many as are wanted."""
        import optuna

        from training.campaign import tune_storage

        tune_storage.fail_stale(self.study)
        if self._counted() + len(self._running()) - len(self._dead()) >= self.settings.tune.trials:
            time.sleep(queue.POLL)
            return
        with ExitStack() as turn:
            if turn.enter_context(queue.alone(self.folder, self.campaign.stop_requested, quiet=True)) is None:
                return
            self._recover()
            if self._counted() + len(self._running()) >= self.settings.tune.trials:
                return
            self.study.sampler = self._sampler()
            try:
                self.study.optimize(lambda one: self._objective(one, turn.close), n_trials=1, catch=(_Lost,))
            except optuna.exceptions.UpdateFinishedTrialError:
                print(f"{self.member.name}: another process took this trial over, as this one did not answer")

    def _open(self) -> optuna.Study:
        import optuna

        from training.campaign import tune_storage

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with queue.alone(self.folder, self.campaign.stop_requested):  # of two that make the same tables, one would fail
            return optuna.create_study(
                storage=tune_storage.opened(self._storage),
                study_name=f"{self.campaign.folder.name}.{self.member.name}.{_digest(self.settings)}",
                direction="maximize" if HIGHER_IS_BETTER[self.metric] else "minimize",
                pruner=self._pruner(),
                load_if_exists=True,
            )

    def _pruner(self) -> optuna.pruners.BasePruner:
        import optuna

        epochs = self.proxy.train.epochs
        if self.settings.tune.pruner == "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)
        if self.settings.tune.pruner == "median":
            return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=epochs // 5)
        return optuna.pruners.NopPruner()

    def _sampler(self) -> optuna.samplers.BaseSampler:
        """TPE, seeded anew for each trial, so that a search that was stopped goes on as it would have (but for
        Hyperband's brackets, which follow the trials' numbers), and several processes try different things."""
        import optuna

        seed = philox_seed(self.settings.seed, "tune", self._counted() + len(self._running())) % 2**32
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(self.settings.tune.trials // 3, 1)))

    def _objective(self, one: optuna.Trial, begun: Callable[[], None]) -> float:
        """Train a trial; `begun` is called as soon as others can see whose it is."""
        values = {name: _suggest(one, name, where) for name, where in _space(self.settings).items()}
        folder = self.folder / hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
        one.set_user_attr("folder", folder.name)
        one.set_user_attr(_WORKER, [socket.gethostname(), os.getpid(), psutil.Process().create_time()])
        begun()
        print(f"{self.member.name}: trial {one.number}: {_said(values)}")
        settings = trial.applied(self.proxy, values)
        # Another process may have the same values, or be slow and not know yet that this one has taken its trial over.
        with queue.alone(folder / f"fold_{settings.tune.fold}", self.campaign.stop_requested) as claim:
            score = self._trained(one, settings, folder, claim)
        print(f"{self.member.name}: trial {one.number}: {self.metric} {score:.4f}")
        return score

    def _trained(self, one: optuna.Trial, settings: Settings, folder: Path, claim: queue.Claim | None) -> float:
        """The trial's score; `TrialPruned` where it is cut short."""
        import optuna

        hopeless = False

        def on_epoch(row: dict[str, float], _best: bool) -> None:
            nonlocal hopeless
            one.report(row[self.metric], int(row["epoch"]))
            hopeless = hopeless or (row["epoch"] < settings.train.epochs and one.should_prune())

        def stop_requested() -> bool:
            return hopeless or claim is None or claim.lost or self.campaign.stop_requested()

        try:
            result = trial.train(self.campaign.engine, settings, self.shared, folder, on_epoch, stop_requested)
        except (Diverged, OutOfMemory) as error:
            print(f"{self.member.name}: trial {one.number}: no score: {error}")
            one.set_user_attr("failure", str(error))
            trial.clear(folder)
            raise optuna.TrialPruned from error
        except Interrupted:
            if self.campaign.stop_requested():
                self.study.enqueue_trial(one.params)
                raise Interrupted(self.campaign.folder) from None
            if claim is None or claim.lost:
                raise _Lost from None
            trial.clear(folder)
            print(f"{self.member.name}: trial {one.number}: cut short")
            raise optuna.TrialPruned from None
        trial.clear(folder)
        return float(result[self.metric])

    def _recover(self) -> None:
        """Trials of dead processes are queued again. To be called by one process at a time."""
        import optuna

        for one in self._dead():
            self.study.tell(one.number, state=optuna.trial.TrialState.FAIL)
            self.study.enqueue_trial(one.params)

    def _dead(self) -> list[optuna.trial.FrozenTrial]:
        """Running trials whose process on this host has ended (other hosts' heartbeats tell), and those that are
        nobody's: their process is about to say that they are its own, or has died before it did."""
        found = []
        for one in self._running():
            host, process, began = one.user_attrs.get(_WORKER, ["", 0, 0.0])
            if not host or (host == socket.gethostname() and not _lives(process, began)):
                found.append(one)
        return found

    def _running(self) -> list[optuna.trial.FrozenTrial]:
        import optuna

        return self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))

    def _counted(self) -> int:
        import optuna

        ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        return len(self.study.get_trials(deepcopy=False, states=ended))

    def _write(self) -> None:
        """`trials.csv`, best first, and `study.png`, unless another process was first."""
        from training.campaign import tune_plot

        file, told = self.folder / "trials.csv", _table(self.study, self.metric)
        if not file.exists() or file.read_bytes() != told:
            tune_plot.write(self.study, self.metric, self.folder / "study.png")
            atomic_write(file, told)


def write(campaign: Campaign, found: list[Found]) -> Path:
    """`train_optimized_DATE_TIME.yaml`: all members, those that were searched for with what was found."""
    better = {one.member.name: one.member for one in found}
    members = [better.get(member.name, member) for member in campaign.members]
    if len(members) == 1 and not load.read_members(campaign.folder / load.CAMPAIGN)[0].name:
        members = [replace(members[0], name="")]
    path = campaign.folder / f"train_optimized_{datetime.now():%Y%m%d_%H%M%S}.yaml"
    atomic_write(path, load.members_yaml(members))
    for one in found:
        metric = one.member.settings.stopping.metric
        print(
            f"{one.member.name}: best of {counted(one.trials, 'trial')}: {metric} {one.score:.4f} with "
            f"{_said(one.values)}"
        )
    print(f"wrote {path}")
    return path


def _space(settings: Settings) -> dict[str, Search]:
    return {name: where for name, where in settings.tune.space.items() if where is not None}


def _check_space(settings: Settings) -> None:
    """`ConfigError` for a setting that is not there or must not change, or that cannot take an end of its range."""
    space = _space(settings)
    if not space:
        raise ConfigError("tune.space: is empty; name the settings to search")
    fixed = (
        "data.",
        "folds.",
        "ensemble.",
        "track.",
        "checkpoint.",
        "stopping.",
        "tune.",
        "tta.",
        "resume",
        "out",
        "name",
        "seed",
    )
    for name in space:
        if name in usage.leaves() and name.startswith(fixed) and name != "data.image_size":
            raise ConfigError(f"tune.space: {name} is not searched; it does not make a model better")
    for name, where in space.items():
        ends = where.choices if where.choices is not None else (where.low, where.high)
        for end in ends:
            value = int(end) if isinstance(end, float) and _is_whole(name) else end
            trial.applied(settings, {name: value})


def _suggest(one: optuna.Trial, name: str, where: Search) -> Any:
    if where.choices is not None:
        return one.suggest_categorical(name, where.choices)
    low, high = where.low or 0.0, where.high or 0.0
    if _is_whole(name):
        return one.suggest_int(name, int(low), int(high), log=where.log)
    return one.suggest_float(name, low, high, log=where.log)


def _is_whole(name: str) -> bool:
    return name in usage.leaves() and usage.leaves()[name].accepts.startswith("a whole number")


def _digest(settings: Settings) -> str:
    """What tells studies apart: all that changes a trial, not how many there are or where they are kept."""
    values = settings.model_dump(mode="json", exclude=set(_ELSEWHERE))
    values["tune"] = {k: v for k, v in values["tune"].items() if k not in ("trials", "storage", "pruner")}
    for key in ("root", "workers", "processes"):
        del values["data"][key]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _lives(process: int, began: float) -> bool:
    """Whether a process of this host is still the one that began then."""
    try:
        return abs(psutil.Process(process).create_time() - began) < 1
    except psutil.NoSuchProcess:
        return False


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())


def _table(study: optuna.Study, metric: str) -> bytes:
    names = sorted({name for one in study.trials for name in one.params})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("trial", "state", metric, *names, "epochs", "seconds", "folder"))
    sign = -1 if HIGHER_IS_BETTER[metric] else 1
    ranked = sorted(study.trials, key=lambda one: (one.value is None, sign * (one.value or 0.0), one.number))
    for one in ranked:
        seconds = f"{one.duration.total_seconds():.1f}" if one.duration else ""
        score = "" if one.value is None else f"{one.value:.6f}"
        tried = (one.params.get(name, "") for name in names)
        epochs = len(one.intermediate_values)
        writer.writerow((one.number, one.state.name, score, *tried, epochs, seconds, one.user_attrs.get("folder", "")))
    return text.getvalue().encode()
