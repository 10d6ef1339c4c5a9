"""The search for better settings of a campaign's members with Optuna: TPE, and pruning by the score of each epoch.

A study lives in a database. Whoever opens it continues it: after a stop, or beside other processes. One trial is in
`trial`, the picture of a study in `tune_plot`. Optuna (MIT) is the extra `tune`, imported on use.
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
from typing import Any

import optuna
import psutil

from config import load, usage
from config.errors import CheckpointError, ConfigError, Diverged, Interrupted, OutOfMemory
from config.members import Member
from config.places import atomic_write
from config.schema import Settings
from config.sections.tune import Search
from config.text import counted
from data.rng import philox_seed
from training.campaign import queue, trial, tune_plot, tune_storage
from training.campaign.members import Campaign
from training.campaign.start import open_shared
from training.policy.stopping import HIGHER_IS_BETTER
from training.run.prepare import SharedData

FOLDER = "tune"
_WORKER = "worker"


@dataclass(frozen=True)
class BestTrial:
    """The best trial of a member: its values, its score, the member's settings with them, and the number of trials."""

    member: Member
    values: dict[str, Any]
    score: float
    trials: int


def search(campaign: Campaign, wanted: list[Member]) -> list[BestTrial]:
    """Search until each wanted member's study has `tune.trials` trials; the best of each.

    Raises `Interrupted` where a stop was asked for, `ConfigError` for a space or a storage that cannot be used, and
    `CheckpointError` where no trial of a member came to a score.
    """
    for member in wanted:
        _check_space(member.settings)
    shared = open_shared(campaign)
    for member in wanted:
        if member.settings.tune.fold not in shared.numbers:
            raise ConfigError(f"tune.fold: there is no fold {member.settings.tune.fold}; there are {shared.numbers}")
    return [_Study(campaign, member, shared).run() for member in wanted]


class _Lost(Exception):
    """Another machine has taken this trial over, since this process did not answer."""


class _Study:
    """The search for one member."""

    def __init__(self, campaign: Campaign, member: Member, shared: SharedData):
        self.campaign, self.member, self.shared = campaign, member, shared
        self.settings, self.proxy = member.settings, trial.proxy(member.settings)
        self.metric = self.settings.stopping.metric
        self.folder = campaign.folder / FOLDER / member.name
        self.folder.mkdir(parents=True, exist_ok=True)
        # The database's URL, with names of variables in place of secrets.
        self.storage = self.settings.tune.storage or f"sqlite:///{campaign.folder / FOLDER / 'study.db'}"
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with queue.alone(self.folder, campaign.stop_requested):  # of two that make the same tables, one would fail
            self.study = optuna.create_study(
                storage=tune_storage.opened(self.storage),
                study_name=f"{campaign.folder.name}.{member.name}.{trial.digest(self.settings)}",
                direction="maximize" if HIGHER_IS_BETTER[self.metric] else "minimize",
                pruner=self._pruner(),
                load_if_exists=True,
            )

    def run(self) -> BestTrial:
        """Run the remaining trials, with whichever processes help, write `trials.csv` and `study.png`; the best trial.

        Raises `CheckpointError` where the database no longer answers.
        """
        with tune_storage.lasting(self.storage):
            while self._ended() < self.settings.tune.trials:
                if self.campaign.stop_requested():
                    raise Interrupted(self.campaign.folder)
                self._run_trial()
        with queue.alone(self.folder, self.campaign.stop_requested, quiet=True):
            file, table = self.folder / "trials.csv", _table(self.study, self.metric)
            if not file.exists() or file.read_bytes() != table:  # else another process was first
                tune_plot.write(self.study, self.metric, self.folder / "study.png")
                atomic_write(file, table)
        try:
            best = self.study.best_trial
        except ValueError as error:
            raise CheckpointError(
                f"{self.folder}: none of {counted(self._ended(), 'trial')} came to a score; narrow tune.space"
            ) from error
        tuned = trial.applied(self.settings, best.params)
        return BestTrial(replace(self.member, settings=tuned), best.params, float(best.value or 0), self._ended())

    def _run_trial(self) -> None:
        """Run one trial where fewer than are wanted have ended or run; else wait for those of others, which may fail.

        One process at a time counts and begins, so that there are exactly as many as are wanted.
        """
        tune_storage.fail_stale(self.study)
        if self._ended() + len(self._running()) - len(self._dead()) >= self.settings.tune.trials:
            time.sleep(queue.POLL)
            return
        with ExitStack() as turn:
            if turn.enter_context(queue.alone(self.folder, self.campaign.stop_requested, quiet=True)) is None:
                return
            for dead in self._dead():
                self.study.tell(dead.number, state=optuna.trial.TrialState.FAIL)
                self.study.enqueue_trial(dead.params)
            if self._ended() + len(self._running()) >= self.settings.tune.trials:
                return
            # Seeded anew for each trial, so that a stopped search continues as it would have (except Hyperband's
            # brackets, which follow the trials' numbers), and several processes try different values.
            seed = philox_seed(self.settings.seed, "tune", self._ended() + len(self._running())) % 2**32
            random_trials = min(10, max(self.settings.tune.trials // 3, 1))
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=random_trials)
            try:
                self.study.optimize(lambda running: self._objective(running, turn.close), n_trials=1, catch=(_Lost,))
            except optuna.exceptions.UpdateFinishedTrialError:
                print(f"{self.member.name}: another process took this trial over, as this one did not answer")

    def _pruner(self) -> optuna.pruners.BasePruner:
        epochs = self.proxy.train.epochs
        if self.settings.tune.pruner == "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)
        if self.settings.tune.pruner == "median":
            return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=epochs // 5)
        return optuna.pruners.NopPruner()

    def _objective(self, running: optuna.Trial, begun: Callable[[], None]) -> float:
        """Train a trial; its score. `begun` is called as soon as others can see which process runs it."""
        values = {name: _suggest(running, name, where) for name, where in _space(self.settings).items()}
        folder = self.folder / hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
        running.set_user_attr("folder", folder.name)
        running.set_user_attr(_WORKER, [socket.gethostname(), os.getpid(), psutil.Process().create_time()])
        begun()
        print(f"{self.member.name}: trial {running.number}: {_listed(values)}")
        settings = trial.applied(self.proxy, values)
        # Another process may have the same values, or be slow and not know yet that this one has taken its trial over.
        with queue.alone(folder / f"fold_{settings.tune.fold}", self.campaign.stop_requested) as claim:
            score = self._trained(running, settings, folder, claim)
        print(f"{self.member.name}: trial {running.number}: {self.metric} {score:.4f}")
        return score

    def _trained(self, running: optuna.Trial, settings: Settings, folder: Path, claim: queue.Claim | None) -> float:
        """The trial's score; `TrialPruned` where it is cut short."""
        hopeless = False

        def on_epoch(row: dict[str, float], _best: bool) -> None:
            nonlocal hopeless
            running.report(row[self.metric], int(row["epoch"]))
            hopeless = hopeless or (row["epoch"] < settings.train.epochs and running.should_prune())

        def stop_requested() -> bool:
            return hopeless or claim is None or claim.lost or self.campaign.stop_requested()

        try:
            result = trial.train(self.campaign.engine, settings, self.shared, folder, on_epoch, stop_requested)
        except (Diverged, OutOfMemory) as error:
            print(f"{self.member.name}: trial {running.number}: no score: {error}")
            running.set_user_attr("failure", str(error))
            trial.clear(folder)
            raise optuna.TrialPruned from error
        except Interrupted:
            if self.campaign.stop_requested():
                self.study.enqueue_trial(running.params)
                raise Interrupted(self.campaign.folder) from None
            if claim is None or claim.lost:
                raise _Lost from None
            trial.clear(folder)
            print(f"{self.member.name}: trial {running.number}: cut short")
            raise optuna.TrialPruned from None
        trial.clear(folder)
        return float(result[self.metric])

    def _dead(self) -> list[optuna.trial.FrozenTrial]:
        """Running trials whose process on this host has ended (other hosts' heartbeats tell), and those without a
        process: it is about to name itself, or died before it did."""
        return [
            running
            for running in self._running()
            for host, process, began in [running.user_attrs.get(_WORKER, ["", 0, 0.0])]
            if not host or (host == socket.gethostname() and not _lives(process, began))
        ]

    def _running(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))

    def _ended(self) -> int:
        ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        return len(self.study.get_trials(deepcopy=False, states=ended))


def write(campaign: Campaign, best: list[BestTrial]) -> Path:
    """Write `train_optimized_DATE_TIME.yaml`: all members, the searched ones with the values of their best trial."""
    better = {winner.member.name: winner.member for winner in best}
    members = [better.get(member.name, member) for member in campaign.members]
    if len(members) == 1 and not load.read_members(campaign.folder / load.CAMPAIGN)[0].name:
        members = [replace(members[0], name="")]
    path = campaign.folder / f"train_optimized_{datetime.now():%Y%m%d_%H%M%S}.yaml"
    atomic_write(path, load.members_yaml(members))
    for winner in best:
        metric, trials = winner.member.settings.stopping.metric, counted(winner.trials, "trial")
        print(f"{winner.member.name}: best of {trials}: {metric} {winner.score:.4f} with {_listed(winner.values)}")
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


def _suggest(running: optuna.Trial, name: str, where: Search) -> Any:
    if where.choices is not None:
        return running.suggest_categorical(name, where.choices)
    low, high = where.low or 0.0, where.high or 0.0
    if _is_whole(name):
        return running.suggest_int(name, int(low), int(high), log=where.log)
    return running.suggest_float(name, low, high, log=where.log)


def _is_whole(name: str) -> bool:
    return name in usage.leaves() and usage.leaves()[name].accepts.startswith("a whole number")


def _lives(process: int, began: float) -> bool:
    """Whether a process of this host is still the one that began then."""
    try:
        return abs(psutil.Process(process).create_time() - began) < 1
    except psutil.NoSuchProcess:
        return False


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())


def _table(study: optuna.Study, metric: str) -> bytes:
    names = sorted({name for attempt in study.trials for name in attempt.params})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("trial", "state", metric, *names, "epochs", "seconds", "folder"))
    sign = -1 if HIGHER_IS_BETTER[metric] else 1
    ranked = sorted(
        study.trials, key=lambda attempt: (attempt.value is None, sign * (attempt.value or 0.0), attempt.number)
    )
    for attempt in ranked:
        seconds = f"{attempt.duration.total_seconds():.1f}" if attempt.duration else ""
        score = "" if attempt.value is None else f"{attempt.value:.6f}"
        tried = (attempt.params.get(name, "") for name in names)
        epochs = len(attempt.intermediate_values)
        writer.writerow(
            (attempt.number, attempt.state.name, score, *tried, epochs, seconds, attempt.user_attrs.get("folder", ""))
        )
    return text.getvalue().encode()
