"""One run: settings resolved, data checked, folds made, each trained, the results put together."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import yaml

import backends
from config import load, streams
from config.errors import CheckpointError, ConfigError
from config.schema import Settings
from data import check, folds
from data.cache.images import Images
from training.loop import checkpoint, memory, trainer
from training.loop.state import Callbacks
from training.report import summary
from training.run import audit, auto_model, distillation, fold, results, resume, run_dir
from training.run.prepare import FOLDS, card_of, describe, fold_numbers, keep_folds, refuse, with_vanished
from training.run.prepare import prepare as prepare


def run_all(backend: str, settings: Settings, stop_requested: Callable[[], bool]) -> Path:
    """Train every fold that is not finished yet; returns the run's folder. All bad input is found before training."""
    chosen = auto_model.resolve(settings, backend)
    settings = chosen.settings
    refuse(settings, backend)
    backends.require(backend)
    settings, spec, table = prepare(settings, chosen.table)
    print(*describe(settings, table), sep="\n")
    images = Images.of(settings.data, table.turns)
    teaching = distillation.read(settings, table)
    table, suspects = audit.before(settings, table, stop_requested, lambda: run_dir.folder(settings, backend))
    check.bad_images(settings.data, [*suspects, *teaching.paths()], images)
    folder = run_dir.folder(settings, backend)
    auto_model.keep(folder, chosen)
    streams.log_to(folder)
    run_dir.check_unedited(folder, settings)
    with ExitStack() as held:
        card = card_of(settings, spec, table, backend)
        with run_dir.run_lock(folder):
            table = with_vanished(settings, table, folder)
            fold_of = keep_folds(settings, table, folder)
        numbers = fold_numbers(settings, fold_of)
        distillation.check(teaching, table, fold_of, numbers)
        for path in (folder / f"fold_{k}" for k in numbers):
            path.mkdir(exist_ok=True)
            held.enter_context(run_dir.locked(path))
        if reason := resume.refusal(folder, settings, numbers):
            raise ConfigError(reason)
        resume.apply(folder, settings, [folder / f"fold_{k}" for k in numbers])
        job = fold.Job(backend, settings, spec, card, table, images, fold_of, teaching, folder, stop_requested)
        if _finished(folder, numbers):
            print(f"{folder} is finished already; --resume never trains anew in a new folder")
            return folder
        for k in numbers:
            fold.train(job, k)
        with run_dir.run_lock(folder):
            summary.sum_up(folder, settings.stopping.metric)
    return folder


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
