"""A whole run: settings resolved, data checked, folds made, each trained, the results put together."""

from __future__ import annotations

import csv
import gc
import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

import backends
from backends.contract import Backend, LossSpec, OptimSpec, Session, Weights
from config import load
from config.errors import CheckpointError, ConfigError, DataError, OutOfMemory
from config.schema import Settings
from data import augment, check, folds, index
from data.images import Images
from data.loader import ByEpoch, Loader, Transform
from models import defaults, registry, weights
from models.card import Card, Preprocessing
from models.registry import ModelSpec
from training import checkpoint, engine, memory, metrics, plots, report, results, run, teacher
from training.loop import Events, Loop
from training.policy import loss as losses
from training.policy import optimizer, resizing, sampling
from training.progress import Progress

FOLDS = "folds.csv"


class Interrupted(Exception):
    """The user asked to stop; everything is saved in `folder`."""

    def __init__(self, folder: Path):
        super().__init__(str(folder))
        self.folder = folder


@dataclass(frozen=True)
class Campaign:
    """What all folds of a run share."""

    backend: str
    settings: Settings
    spec: ModelSpec
    card: Card
    table: index.Table
    images: Images
    fold_of: NDArray[np.int64]
    teaching: teacher.Teaching
    folder: Path
    stop_requested: Callable[[], bool]


def run_all(backend: str, settings: Settings, stop_requested: Callable[[], bool]) -> Path:
    """Train every fold that is not finished yet; returns the run's folder. All bad input is found before training."""
    _refuse(settings, backend)
    backends.require(backend)
    settings, spec, table = prepare(settings)
    images = Images(pixel_limit=settings.data.pixel_limit)
    teaching = teacher.read(settings, table)
    if settings.data.on_bad_image == "error":
        check.readable([*table.paths, *teaching.paths()], images, settings.data.workers)
    folder = run.folder(settings, backend)
    run.check_unedited(folder, settings)
    with ExitStack() as held:
        card = Card(settings.model, table.class_names, spec.preprocessing, dict(spec.options), backend)
        with run.briefly(folder):
            if settings.data.on_bad_image == "skip" and (folder / FOLDS).exists():
                table = folds.with_vanished(folder / FOLDS, table)
            fold_of = _folds(settings, table, folder)
        numbers = fold_numbers(settings, fold_of)
        teacher.check(teaching, table, fold_of, numbers)
        for path in (folder / f"fold_{k}" for k in numbers):
            path.mkdir(exist_ok=True)
            held.enter_context(run.locked(path))
        campaign = Campaign(backend, settings, spec, card, table, images, fold_of, teaching, folder, stop_requested)
        if _finished(folder, numbers):
            print(f"{folder} is finished already; --resume never trains anew in a new folder")
            return folder
        for k in numbers:
            _fold(campaign, k)
        with run.briefly(folder):
            _sum_up(folder, settings.stopping.metric)
    return folder


def _refuse(settings: Settings, backend: str) -> None:
    """`ConfigError` for a setting that the engine cannot honour."""
    reason = registry.engines(registry.get(settings.model)).get(backend)
    if reason:
        raise ConfigError(f"model {settings.model}: {reason}; train it with the other engine, or choose another model")
    precision = settings.train.precision
    if precision in ("tf32", "fp16") and backend != "torch":
        raise ConfigError(f"train.precision {precision}: torch alone has it; choose auto, fp32 or bf16 with {backend}")


def soup(fold: Path) -> Path:
    """Make the greedy soup of a trained fold's checkpoints, on the engine that trained it; where it was written."""
    number, folder = re.fullmatch(r"fold_(\d+)", fold.name), fold.parent
    if not number or not (fold / checkpoint.BEST).exists():
        raise CheckpointError(f"{fold}: no fold of a run with a best checkpoint; give RUN/fold_0 or the like")
    settings, spec, table = prepare(load.read(folder / run.CONFIG))
    card, fold_of = results.card(folder), folds.read(folder / FOLDS, table)
    backends.require(card.trained_with)
    images, teaching = Images(pixel_limit=settings.data.pixel_limit), teacher.read(settings, table)
    campaign = Campaign(
        card.trained_with, settings, spec, card, table, images, fold_of, teaching, folder, stop_requested=lambda: False
    )
    with run.locked(fold):
        session = _session(campaign, int(number[1]), memory.remembered(fold))
        try:
            data, events = _fold_data(campaign, int(number[1])), Events(say=print)
            engine.Fit(session, data, settings, card, fold, events).soup()
        finally:
            session.close()
    return fold / checkpoint.SOUP


def prepare(settings: Settings) -> tuple[Settings, ModelSpec, index.Table]:
    """Read the data set and fill in what depends on it and on the model: size, classes, rate, batch."""
    data = settings.data
    table = index.load(data.root, data.id_column, data.target_column, keep_missing=data.on_bad_image == "skip")
    losses.check(settings.loss, table.class_names)
    spec = registry.get(
        settings.model,
        num_classes=len(table.class_names),
        image_size=settings.data.image_size,
        global_pool=settings.global_pool,
        drop_rate=settings.drop.rate,
        drop_path_rate=settings.drop.path,
    )
    spec = replace(spec, preprocessing=_preprocessing(settings, spec))
    resizing.check(settings.progressive, spec)
    resolved = {
        "data": {"image_size": spec.preprocessing.size},
        "train": _batch(settings, spec),
        "optim": {"lr": optimizer.learning_rate(settings.optim, spec)},
    }
    updates = {k: getattr(settings, k).model_copy(update=v) for k, v in resolved.items()}
    return settings.model_copy(update=updates), spec, table


def _batch(settings: Settings, spec: ModelSpec) -> dict[str, Any]:
    wish = settings.train.batch_size
    if wish == "auto":
        return {"batch_size": defaults.batch_size(spec), "micro_batch": settings.train.micro_batch or "auto"}
    return {"batch_size": wish or defaults.batch_size(spec)}


def fold_numbers(settings: Settings, fold_of: NDArray[np.int64]) -> list[int]:
    """The folds to train, in order; `ConfigError` for a number that the split does not have."""
    there = sorted(int(k) for k in np.unique(fold_of) if k >= 0)
    wanted = there if settings.folds.train is None else list(settings.folds.train)
    unknown = [k for k in wanted if k not in there]
    if unknown:
        raise ConfigError(f"folds.train: there is no fold {unknown[0]}; there are {there}")
    return wanted


def _finished(folder: Path, numbers: list[int]) -> bool:
    file = folder / run.FINISHED
    summed = [row["fold"] for row in yaml.safe_load(file.read_text())["folds"]] if file.exists() else []
    return set(numbers) <= set(summed)


def _sum_up(folder: Path, metric: str) -> None:
    """Summary, plots and report of all folds that are finished, whichever process trained them."""
    done = [yaml.safe_load(path.read_text()) for path in folder.glob("fold_*/result.yaml")]
    _write_yaml(folder / run.FINISHED, summarise(sorted(done, key=lambda row: row["fold"]), metric))
    plots.write(folder)
    report.write([folder], folder / "report.html")


def summarise(results: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """`fold_results.yaml`: each fold, and mean, standard deviation (n - 1), best and worst fold by `metric`."""
    names = ("macro_f1", "accuracy", "log_loss")
    values = {name: np.array([r[name] for r in results], dtype=np.float64) for name in names}
    ranked = sorted(results, key=lambda r: r[metric], reverse=metric != "log_loss")
    return {
        "metric": metric,
        "folds": results,
        "mean": {name: float(v.mean()) for name, v in values.items()},
        "std": {name: float(v.std(ddof=1)) if len(v) > 1 else 0.0 for name, v in values.items()},
        "best_fold": ranked[0]["fold"],
        "worst_fold": ranked[-1]["fold"],
    }


def _preprocessing(settings: Settings, spec: ModelSpec) -> Preprocessing:
    """The model's own preprocessing, with the user's wishes over it."""
    own, data = spec.preprocessing, settings.data
    return replace(own, fit=data.fit or own.fit, mean=data.mean or own.mean, std=data.std or own.std)


def _folds(settings: Settings, table: index.Table, folder: Path) -> NDArray[np.int64]:
    """The fold of each image: the run's own `folds.csv`, else the user's, else drawn; written to the run."""
    path, split = folder / FOLDS, settings.folds
    if path.exists():
        return folds.read(path, table)
    if split.file:
        fold_of = folds.read(split.file, table)
    else:
        fold_of = folds.make(
            table.labels, split.kind, split.count, split.val_fraction, settings.seed, table.class_names
        )
    folds.write(path, table, fold_of)
    return fold_of


def _fold(campaign: Campaign, number: int) -> dict[str, Any]:
    """Train one fold, or read its result where it is finished."""
    folder = campaign.folder / f"fold_{number}"
    done = folder / "result.yaml"
    if done.exists():
        return dict(yaml.safe_load(done.read_text()))
    folder.mkdir(exist_ok=True)
    started = time.monotonic()
    data = _fold_data(campaign, number)
    loop = _trained_as_it_fits(campaign, number, data, folder)
    if campaign.stop_requested():
        raise Interrupted(campaign.folder)
    return _finish(folder, number, loop, time.monotonic() - started)


def _trained_as_it_fits(campaign: Campaign, number: int, data: engine.FoldData, folder: Path) -> Loop:
    """Train, in halved micro-batches from the last checkpoint on where the device's memory runs out."""
    micro, batch = memory.remembered(folder), math.gcd(*(stage.batch for stage in data.stages))
    while True:
        try:
            return _trained(campaign, number, data, folder, micro)
        except OutOfMemory as error:
            micro = memory.halved(micro or optimizer.memory(campaign.settings.train).size(batch), batch, error)
        memory.remember(folder, micro)
        print(f"fold {number}: out of memory; going on with {micro} of the batch's {batch} images at a time")
        gc.collect()  # what the broken update held


def _trained(campaign: Campaign, number: int, data: engine.FoldData, folder: Path, micro: int) -> Loop:
    settings = campaign.settings
    session = _session(campaign, number, micro)
    try:
        if settings.train.micro_batch == "auto" and not checkpoint.steps(folder):
            memory.attempt(session, data.stages[-1].batch, data.stages[-1].size, campaign.spec.num_classes)
        run.write_environment(campaign.folder, campaign.backend, session.describe())
        with Progress(settings, number, folder) as watcher:
            fit = engine.Fit(session, data, settings, campaign.card, folder, watcher.events, campaign.stop_requested)
            loop = fit.run()
            _write_suspects(campaign, folder, fit)
    finally:
        session.close()
    return loop


def _session(campaign: Campaign, number: int, micro_batch: int) -> Session:
    settings, spec, backend = campaign.settings, campaign.spec, backends.load(campaign.backend)
    labels = campaign.table.labels[campaign.fold_of != number]
    start = _start(campaign, backend, number)
    optim = optimizer.spec(settings.optim, settings.ema.decay > 0, spec, start)
    loss, train = losses.spec(settings.loss, labels, spec.num_classes), settings.train
    session = backend.open(
        spec,
        start,
        optim,
        loss,
        train.precision,
        settings.seed,
        train.compile != "off",
        optimizer.memory(train, micro_batch),
    )
    if train.compile == "on" and not session.describe()["compiled"]:
        raise ConfigError(
            f"train.compile on: the {campaign.backend} engine does not compile on this device; set it to auto"
        )
    return session


def _start(campaign: Campaign, backend: Backend, number: int) -> Weights:
    """The weights that training starts from: the fold's own, or pretrained ones made to fit, or fresh ones."""
    begun = checkpoint.newest(campaign.folder / f"fold_{number}")
    if begun:
        return weights.read(begun / "model.safetensors")[0]
    spec, settings = campaign.spec, campaign.settings
    found = weights.resolve(spec, settings.weights)
    if found is not None:
        fitted, notes = weights.fit(found, spec)
        for note in notes:
            print(note)
        return fitted
    session = backend.open(spec, None, OptimSpec(), LossSpec(), seed=settings.seed)
    try:
        return session.state().weights
    finally:
        session.close()


def _fold_data(campaign: Campaign, number: int) -> engine.FoldData:
    settings, table = campaign.settings, campaign.table
    train, valid = np.flatnonzero(campaign.fold_of != number), np.flatnonzero(campaign.fold_of == number)
    if not len(train) or not len(valid):
        raise DataError(f"fold {number} has {len(train)} training and {len(valid)} validation images; change folds")
    lesson = teacher.lesson(campaign.teaching, table, train, number)
    batch = min(int(settings.train.batch_size or 1), len(lesson.paths))
    optimizer.memory(settings.train).size(batch)  # refuses a micro-batch that does not divide it
    stages = resizing.stages(settings.progressive, settings.train, campaign.spec, batch, len(lesson.paths))
    return engine.FoldData(
        stages=stages,
        train=tuple(_train_loader(campaign, stage, lesson.paths) for stage in stages),
        train_labels=lesson.labels,
        train_targets=lesson.targets,
        train_weights=lesson.weights,
        valid=_valid_loader(campaign, [table.paths[i] for i in valid], settings.train.val_batch_size or batch),
        valid_labels=table.labels[valid],
        valid_ids=[table.ids[i] for i in valid],
        raise_to=sampling.raise_to(settings.class_imbalance, table.class_names),
    )


def _train_loader(campaign: Campaign, stage: resizing.Stage, paths: Sequence[Path]) -> Loader:
    settings = campaign.settings
    prep = replace(campaign.card.preprocessing, size=stage.size)
    transform = augment.by_epoch(settings.augment, prep, settings.train.epochs)
    return _loader(campaign, paths, transform, stage.size, stage.batch)


def _valid_loader(campaign: Campaign, paths: Sequence[Path], batch: int) -> Loader:
    prep = campaign.card.preprocessing
    return _loader(campaign, paths, augment.eval_transform(prep), prep.size, batch)


def _loader(campaign: Campaign, paths: Sequence[Path], transform: Transform | ByEpoch, size: int, batch: int) -> Loader:
    settings = campaign.settings
    skip = settings.data.on_bad_image == "skip"
    return Loader(paths, transform, size, batch, settings.data.workers, settings.seed, campaign.images, skip)


def _finish(folder: Path, number: int, loop: Loop, seconds: float) -> dict[str, Any]:
    with np.load(folder / "oof.npz") as oof:
        scores = metrics.scores(oof["logits"], oof["targets"])
    row = {
        "fold": number,
        **{name: round(value, 6) for name, value in scores.items()},
        "best_epoch": loop.stopping.best_epoch + 1,
        "weights": checkpoint.read_state(folder / checkpoint.BEST).get("averaged", "epoch"),
        "epochs": len(loop.history),
        "unreadable": int(sum(row["unreadable"] for row in loop.history)),
        "seconds": round(seconds, 1),
    }
    _write_yaml(folder / "result.yaml", row)
    return row


def _write_suspects(campaign: Campaign, folder: Path, fit: engine.Fit) -> None:
    """`suspects.csv`: id, target and mean loss of the training images whose labels mining suspects, hardest first."""
    found = fit.suspects()
    if not found:
        return
    id_of = dict(zip(campaign.table.paths, campaign.table.ids, strict=True))
    partial = folder / "suspects.partial"
    with partial.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("id", "target", "loss"))
        for i in found:
            path, target = fit.data.train[-1].paths[i], campaign.table.class_names[fit.data.train_labels[i]]
            writer.writerow((id_of.get(path, str(path)), target, f"{fit.mining.losses[i]:.6f}"))
    partial.replace(folder / "suspects.csv")


def _write_yaml(path: Path, value: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(yaml.safe_dump(value, sort_keys=False))
    partial.replace(path)
