"""One trial of a search: a fold trained with other settings, on fewer or smaller images where the settings say so.

Which trials there are and what is made of them stands in `tune`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config import load
from config.members import Member
from config.places import atomic_write
from config.schema import Settings
from data import folds, sources
from data.rng import philox
from training.loop import checkpoint
from training.run import distillation, fold, results, run_dir
from training.run.prepare import SharedData, prepare
from training.run.progress import OnEpoch

# Settings that no trial depends on, or that all of a campaign share.
_ELSEWHERE = ("out", "name", "resume", "resume_anyway", "checkpoint", "tta", "folds", "track", "ensemble")
# What is counted in epochs and follows a trial's number of them.
_COUNTED = (
    "schedule.warmup_epochs",
    "optim.freeze_epochs",
    "mix.off_epochs",
    "augment.off_epochs",
    "swa.epochs",
    "mining.start_epoch",
    "mining.ramp_epochs",
    "schedule.t_0",
    "schedule.step_epochs",
)


def proxy(settings: Settings) -> Settings:
    """The settings of a trial that tries nothing: fewer epochs and a smaller size, where `tune` says so."""
    tune, epochs = settings.tune, settings.train.epochs
    values: dict[str, Any] = {"checkpoint.keep": 1}
    if tune.proxy_image_size:
        values["data.image_size"] = tune.proxy_image_size
    if tune.proxy_epochs and tune.proxy_epochs != epochs:
        values["train.epochs"] = tune.proxy_epochs
        values_now = settings.model_dump()
        for name in _COUNTED:
            section, key = name.split(".")
            now = values_now[section][key]
            scaled = now * tune.proxy_epochs / epochs
            least = 1 if section == "mining" else 0
            values[name] = max(round(scaled), least) if isinstance(now, int) else scaled
    return load.changed(settings, values, "the proxy of tune")


def thinned(
    table: sources.Table, fold_of: NDArray[np.int64], per_class: int, number: int, seed: int
) -> tuple[sources.Table, NDArray[np.int64]]:
    """At most about `per_class` images of each class, drawn by the seed, with their folds.

    The share of those that validate fold `number` stays, and each side of it keeps one of each class that it has.
    """
    judged = folds.validates(fold_of, number)
    chosen = []
    for label in np.unique(table.labels):
        mine = table.labels == label
        share = min(per_class / mine.sum(), 1.0)
        for side_number, side in enumerate((judged, ~judged)):
            rows = np.flatnonzero(mine & side)
            drawn = philox(seed, "proxy", int(label), side_number).permutation(rows)
            chosen.append(drawn[: max(round(share * len(rows)), 1)])
    rows = np.sort(np.concatenate(chosen))
    return replace(table.take(rows), groups=None), fold_of[rows]


def train(
    engine: str,
    settings: Settings,
    shared: SharedData,
    folder: Path,
    on_epoch: OnEpoch,
    stop_requested: Callable[[], bool],
) -> dict[str, Any]:
    """Train a trial in `folder`, or resume it; the fold's result.

    `on_epoch` first gets the epochs that an earlier start trained. Raises as `fold.train`.
    """
    number = settings.tune.fold
    table, fold_of = shared.table, shared.fold_of
    if settings.tune.proxy_per_class:
        table, fold_of = thinned(table, fold_of, settings.tune.proxy_per_class, number, settings.seed)
    settings, spec, _ = prepare(settings, table)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / run_dir.CONFIG, load.to_yaml(settings))
    teaching, data = distillation.read(settings, shared.table), replace(shared, table=table, fold_of=fold_of)
    job = fold.Job(engine, settings, spec, data, teaching, folder, stop_requested, on_epoch)
    for row in history(folder / f"fold_{number}"):
        on_epoch(row, False)
    return fold.train(job, number)


def history(fold_folder: Path) -> list[dict[str, float]]:
    """The rows of a fold's `history.csv` up to its last checkpoint."""
    last = checkpoint.newest(fold_folder)
    if last is None:
        return []
    rows = [{key: float(value) for key, value in row.items()} for row in results.history(fold_folder)]
    return [row for row in rows if row["epoch"] <= checkpoint.read_state(last)["loop"]["epoch"]]


def clear(folder: Path) -> None:
    """Remove the checkpoints of a trial that has ended; its settings, history and result stay."""
    for fold_folder in folder.glob("fold_*/"):
        for path in (*checkpoint.steps(fold_folder), fold_folder / checkpoint.BEST):
            shutil.rmtree(path, ignore_errors=True)
        (fold_folder / "oof.npz").unlink(missing_ok=True)


def applied(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings with the values of a trial."""
    return load.changed(settings, values, "tune.space")


def key(members: Sequence[Member]) -> str:
    """A digest that identifies the searches of a campaign: settings, spaces and numbers of trials."""
    searches = [[member.name, digest(member.settings), member.settings.tune.trials] for member in members]
    return hashlib.sha256(json.dumps(searches).encode()).hexdigest()


def digest(settings: Settings) -> str:
    """A digest that identifies a study: all that changes a trial, not the number of trials or their storage."""
    values = settings.model_dump(mode="json", exclude=set(_ELSEWHERE))
    values["tune"] = {k: v for k, v in values["tune"].items() if k not in ("trials", "storage", "pruner")}
    for key in ("root", "workers", "processes"):
        del values["data"][key]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
