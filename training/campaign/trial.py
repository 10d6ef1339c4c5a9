"""One trial of a search: a fold trained with other settings, on fewer or smaller images where the settings say so.

Which trials there are and what is made of them stands in `tune`.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config import load
from config.places import atomic_write
from config.schema import Settings
from data import folds, sources
from data.rng import philox
from training.loop import checkpoint
from training.run import distillation, fold, run_dir
from training.run.prepare import SharedData, prepare
from training.run.progress import OnEpoch

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
        whole = settings.model_dump()
        for name in _COUNTED:
            section, key = name.split(".")
            now = whole[section][key]
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
    kept = []
    for label in np.unique(table.labels):
        mine = table.labels == label
        share = min(per_class / mine.sum(), 1.0)
        for part, side in enumerate((judged, ~judged)):
            places = np.flatnonzero(mine & side)
            drawn = philox(seed, "proxy", int(label), part).permutation(places)
            kept.append(drawn[: max(round(share * len(places)), 1)])
    rows = np.sort(np.concatenate(kept))
    return replace(table.take(rows), groups=None), fold_of[rows]


def train(
    engine: str,
    settings: Settings,
    shared: SharedData,
    folder: Path,
    on_epoch: OnEpoch,
    stop_requested: Callable[[], bool],
) -> dict[str, Any]:
    """Train a trial in `folder`, or go on with it; the fold's result. What is large of it is removed at the end.

    Epochs that an earlier start trained are told to `on_epoch` first. Raises as `fold.train`.
    """
    number = settings.tune.fold
    table, fold_of = shared.table, shared.fold_of
    if settings.tune.proxy_per_class:
        table, fold_of = thinned(table, fold_of, settings.tune.proxy_per_class, number, settings.seed)
    settings, spec, _ = prepare(settings, table)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / run_dir.CONFIG, load.to_yaml(settings))
    teaching, part = distillation.read(settings, shared.table), replace(shared, table=table, fold_of=fold_of)
    job = fold.Job(engine, settings, spec, part, teaching, folder, stop_requested, on_epoch)
    for row in history(folder / f"fold_{number}"):
        on_epoch(row, False)
    return fold.train(job, number)


def history(place: Path) -> list[dict[str, float]]:
    """The rows of a fold's `history.csv`, as far as its last checkpoint goes."""
    file, last = place / "history.csv", checkpoint.newest(place)
    if last is None or not file.exists():
        return []
    with file.open(newline="") as stream:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]
    return [row for row in rows if row["epoch"] <= checkpoint.read_state(last)["loop"]["epoch"]]


def clear(folder: Path) -> None:
    """Remove the checkpoints of a trial that has ended; its settings, history and result stay."""
    for place in folder.glob("fold_*/"):
        for path in (*checkpoint.steps(place), place / checkpoint.BEST):
            shutil.rmtree(path, ignore_errors=True)
        (place / "oof.npz").unlink(missing_ok=True)


def applied(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings with what a trial tries."""
    return load.changed(settings, values, "tune.space")
