"""One run: settings resolved, data checked, folds made, each trained, the results put together."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

import backends
from backends.group import ALONE, Group
from config import load, streams
from config.errors import CheckpointError, ConfigError
from config.schema import Settings
from data import check, folds, sources
from data.cache.images import Images
from models.registry import ModelSpec
from models.weights import loading
from training.distributed import ranks
from training.distributed.resume import require
from training.loop import checkpoint, memory, trainer
from training.loop.state import Callbacks
from training.report import summary
from training.run import audit, auto_model, distillation, fold, results, resume, run_dir
from training.run.prepare import FOLDS, card_of, describe, fold_numbers, keep_folds, refuse, with_vanished
from training.run.prepare import prepare as prepare


def run_all(
    backend: str,
    settings: Settings,
    stop_requested: Callable[[], bool],
    group: Group = ALONE,
    on_folder: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Train every fold that is not finished yet; returns the run's folder. All bad input is found before training.

    The processes of a `group` train each fold together, in one folder that all of them see; rank 0 alone writes.
    `on_folder` is told the folder as soon as it is there.
    """

    chosen = _chosen(settings, backend, group)

    def read() -> tuple[Settings, ModelSpec, sources.Table, distillation.DistillationData]:
        refuse(chosen.settings, backend)
        backends.require(backend)
        prepared, spec, table = prepare(chosen.settings, chosen.table)
        ranks.share(int(prepared.train.batch_size or 1), group)
        return prepared, spec, table, distillation.read(prepared, table)

    settings, spec, table, teaching = ranks.together(group, read)
    print(*describe(settings, table), sep="\n")
    images = Images.of(settings.data, table.turns)
    with ExitStack() as held:

        def begin() -> tuple[str, NDArray[np.int64] | None]:
            if run_dir.existing(settings, backend, quiet=True) is None:
                loading.find(spec, settings.weights)  # missing weights are an error before the audit
            audited, suspects = audit.before(settings, table, stop_requested, lambda: run_dir.folder(settings, backend))
            check.bad_images(settings.data, [*suspects, *teaching.paths()], images)
            return str(_begun(backend, settings, chosen, audited, teaching, held)), audited.groups

        place, groups = ranks.decided(group, begin)
        folder, table = Path(place), replace(table, groups=groups)
        streams.log_to(folder)
        require(group, folder)
        on_folder(folder)
        card = card_of(settings, spec, table, backend)
        table, fold_of = ranks.together(group, lambda: _split(settings, table, folder))
        numbers = fold_numbers(settings, fold_of)
        if ranks.decided(group, lambda: _finished(folder, numbers)):
            print(f"{folder} is finished already; --resume never trains anew in a new folder")
            return folder
        job = fold.Job(
            backend, settings, spec, card, table, images, fold_of, teaching, folder, stop_requested, group=group
        )
        for k in numbers:
            fold.train(job, k)
        ranks.decided(group, lambda: _sum_up_locked(folder, settings.stopping.metric))
    return folder


def _chosen(settings: Settings, backend: str, group: Group) -> auto_model.Resolved:
    """The settings with a model, the same on all ranks."""
    if group.world_size == 1:
        return auto_model.resolve(settings, backend)
    values = ranks.decided(group, lambda: dict(auto_model.resolve(settings, backend).values))
    return auto_model.Resolved(load.changed(settings, values, "model auto") if values else settings, None, values)


def _begun(
    backend: str,
    settings: Settings,
    chosen: auto_model.Resolved,
    table: sources.Table,
    teaching: distillation.DistillationData,
    held: ExitStack,
) -> Path:
    """The run's folder with its folds drawn, and the locks of those to train in `held`."""
    folder = run_dir.folder(settings, backend)
    auto_model.keep(folder, chosen)
    streams.log_to(folder)
    run_dir.check_unedited(folder, settings)
    with run_dir.run_lock(folder):
        table, fold_of = _split(settings, table, folder)
    numbers = fold_numbers(settings, fold_of)
    distillation.check(teaching, table, fold_of, numbers)
    for path in (folder / f"fold_{k}" for k in numbers):
        path.mkdir(exist_ok=True)
        held.enter_context(run_dir.locked(path))
    if reason := resume.refusal(folder, settings, numbers):
        raise ConfigError(reason)
    resume.apply(folder, settings, [folder / f"fold_{k}" for k in numbers])
    return folder


def _split(settings: Settings, table: sources.Table, folder: Path) -> tuple[sources.Table, NDArray[np.int64]]:
    """The table as the run's folds remember it, and the fold of each image; drawn where the run has none yet."""
    table = with_vanished(settings, table, folder)
    return table, keep_folds(settings, table, folder)


def soup(place: Path) -> Path:
    """Make the greedy soup of a trained fold's checkpoints, on the engine that trained it; where it was written."""
    number, folder = re.fullmatch(r"fold_(\d+)", place.name), place.parent
    if not number or not (place / checkpoint.BEST).exists():
        raise CheckpointError(f"{place}: no fold of a run with a best checkpoint; give RUN/fold_0 or the like")
    settings, spec, table = prepare(load.read(folder / run_dir.CONFIG))
    card, fold_of = results.card(folder), folds.read(folder / FOLDS, table)
    backends.require(card.trained_with)
    images = Images.of(settings.data, table.turns)
    teaching = distillation.read(settings, table)
    job = fold.Job(card.trained_with, settings, spec, card, table, images, fold_of, teaching, folder, lambda: False)
    with run_dir.locked(place):
        session = fold.open_session(job, int(number[1]), memory.remembered(place))
        try:
            data, events = fold.load_data(job, int(number[1])), Callbacks(say=print)
            trainer.Trainer(session, data, settings, card, place, events).soup()
        finally:
            session.close()
    return place / checkpoint.SOUP


def _finished(folder: Path, numbers: list[int]) -> bool:
    file = folder / run_dir.FINISHED
    summed = [row["fold"] for row in yaml.safe_load(file.read_text())["folds"]] if file.exists() else []
    return set(numbers) <= set(summed)


def _sum_up_locked(folder: Path, metric: str) -> None:
    with run_dir.run_lock(folder):
        summary.sum_up(folder, metric)
