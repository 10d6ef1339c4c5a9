"""One run: settings resolved, data checked, folds made, each trained, the results put together."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import backends
from backends.group import ALONE, Group
from config import load, streams
from config.errors import CheckpointError, ConfigError
from config.schema import Settings
from data import check, sources
from data.audit import actions
from data.cache.images import Images
from models.registry import ModelSpec
from models.weights import loading
from training.distributed import ranks
from training.distributed.resume import require
from training.loop import checkpoint, memory, trainer
from training.loop.state import Callbacks
from training.report import summary
from training.run import audit, auto_model, distillation, fold, results, resume, run_dir
from training.run.prepare import SharedData, describe, prepare, refuse, split


def run_all(
    backend: str,
    settings: Settings,
    stop_requested: Callable[[], bool],
    group: Group = ALONE,
    on_folder: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Train every fold that is not finished yet; returns the run's folder. All bad input is refused before training.

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

        def open_folder() -> tuple[str, NDArray[np.int64] | None]:
            if run_dir.existing(settings, backend, quiet=True) is None:
                loading.find(spec, settings.weights)  # missing weights are an error before the audit
            audited, doubtful = audit.before(settings, table, stop_requested, lambda: run_dir.folder(settings, backend))
            check.bad_images(settings.data, [*doubtful, *teaching.paths()], images)
            path = run_dir.folder(settings, backend)
            auto_model.keep(path, chosen.values)
            streams.log_to(path)
            run_dir.check_unedited(path, settings)
            _begin(settings, split(settings, audited, images, path), teaching, path, held)
            return str(path), audited.groups

        name, groups = ranks.decided(group, open_folder)
        folder = Path(name)
        streams.log_to(folder)
        require(group, folder)
        on_folder(folder)
        data = ranks.together(group, lambda: split(settings, replace(table, groups=groups), images, folder))
        if ranks.decided(group, lambda: summary.reported_folds(folder) >= set(data.numbers)):
            print(f"{folder} is finished already; --resume never trains anew in a new folder")
            return folder
        job = fold.Job(backend, settings, spec, data, teaching, folder, stop_requested, group=group)
        for k in data.numbers:
            fold.train(job, k)

        def sum_up() -> None:
            with run_dir.run_lock(folder):
                summary.sum_up(folder, settings.stopping.metric)

        ranks.decided(group, sum_up)
    return folder


def _chosen(settings: Settings, backend: str, group: Group) -> auto_model.Resolved:
    """The settings with a model, the same on all ranks."""
    if group.world_size == 1:
        return auto_model.resolve(settings, backend)
    values = ranks.decided(group, lambda: dict(auto_model.resolve(settings, backend).values))
    return auto_model.Resolved(load.changed(settings, values, "model auto") if values else settings, None, values)


def _begin(
    settings: Settings, data: SharedData, teaching: distillation.DistillationData, folder: Path, held: ExitStack
) -> None:
    """Lock the folds that are to be trained, until `held` is closed, and give the run its settings."""
    distillation.check(teaching, data.table, data.fold_of, data.numbers)
    folds = [folder / f"fold_{k}" for k in data.numbers]
    for path in folds:
        path.mkdir(exist_ok=True)
        held.enter_context(run_dir.locked(path))
    if reason := resume.refusal(folder, settings, data.numbers):
        raise ConfigError(reason)
    resume.apply(folder, settings, folds)


def soup(path: Path) -> Path:
    """Make the greedy soup of a trained fold's checkpoints, on the engine that trained it; the path of the soup."""
    number, folder = re.fullmatch(r"fold_(\d+)", path.name), path.parent
    if not number or not (path / checkpoint.BEST).exists():
        raise CheckpointError(f"{path}: no fold of a run with a best checkpoint; give RUN/fold_0 or the like")
    engine, settings = results.card(folder).trained_with, load.read(folder / run_dir.CONFIG)
    backends.require(engine)
    table = actions.load(settings.data).table
    shared = split(settings, table, Images.of(settings.data, table.turns), folder)
    job = fold.job_of(engine, settings, shared, folder)
    k = int(number[1])
    with run_dir.locked(path), closing(fold.open_session(job, k, memory.remembered(path))) as session:
        data = fold.load_data(job, k)
        trainer.Trainer(session, data, job.settings, job.card, path, Callbacks(say=print)).soup()
    return path / checkpoint.SOUP
