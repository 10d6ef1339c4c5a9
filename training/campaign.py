"""A whole run: settings resolved, data checked, folds made, each trained, the results put together."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

import backends
from backends.contract import Backend, LossSpec, OptimSpec, Session, Weights
from config.errors import ConfigError, DataError
from config.schema import Settings
from data import augment, check, folds, index
from data.images import Images
from data.loader import Loader
from models import defaults, registry, weights
from models.card import Card, Preprocessing
from models.registry import ModelSpec
from training import checkpoint, engine, metrics, plots, report, run
from training.loop import Loop
from training.policy import loss as losses
from training.policy import optimizer, sampling
from training.progress import Progress
from training.targets import smoothed


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
    folder: Path
    stop_requested: Callable[[], bool]


def run_all(backend: str, settings: Settings, stop_requested: Callable[[], bool]) -> Path:
    """Train every fold that is not finished yet; returns the run's folder. All bad input is found before training."""
    backends.require(backend)
    settings, spec, table = prepare(settings)
    images = Images(pixel_limit=settings.data.pixel_limit)
    check.readable(table.paths, images, settings.data.workers)
    folder = run.folder(settings, backend)
    run.check_unedited(folder, settings)
    with ExitStack() as held:
        card = Card(settings.model, table.class_names, spec.preprocessing, dict(spec.options), backend)
        with run.briefly(folder):
            fold_of = _folds(settings, table, folder)
        numbers = fold_numbers(settings, fold_of)
        for path in (folder / f"fold_{k}" for k in numbers):
            path.mkdir(exist_ok=True)
            held.enter_context(run.locked(path))
        campaign = Campaign(backend, settings, spec, card, table, images, fold_of, folder, stop_requested)
        if _finished(folder, numbers):
            print(f"{folder} is finished already; --resume never trains anew in a new folder")
            return folder
        for k in numbers:
            _fold(campaign, k)
        with run.briefly(folder):
            _sum_up(folder, settings.stopping.metric)
    return folder


def prepare(settings: Settings) -> tuple[Settings, ModelSpec, index.Table]:
    """Read the data set and fill in what depends on it and on the model: size, classes, rate, batch."""
    table = index.load(settings.data.root, settings.data.id_column, settings.data.target_column)
    losses.check(settings.loss, table.class_names)
    spec = registry.get(
        settings.model,
        num_classes=len(table.class_names),
        image_size=settings.data.image_size,
        drop_rate=settings.drop.rate,
        drop_path_rate=settings.drop.path,
    )
    spec = replace(spec, preprocessing=_preprocessing(settings, spec))
    resolved = {
        "data": {"image_size": spec.preprocessing.size},
        "train": {"batch_size": settings.train.batch_size or defaults.batch_size(spec)},
        "optim": {"lr": optimizer.learning_rate(settings.optim, spec)},
    }
    updates = {k: getattr(settings, k).model_copy(update=v) for k, v in resolved.items()}
    return settings.model_copy(update=updates), spec, table


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
    path, split = folder / "folds.csv", settings.folds
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
    session = _session(campaign, number)
    try:
        run.write_environment(campaign.folder, campaign.backend, session.describe())
        with Progress(campaign.settings, number, len(data.train_targets), folder) as watcher:
            fit = engine.Fit(
                session, data, campaign.settings, campaign.card, folder, watcher.events, campaign.stop_requested
            )
            loop = fit.run()
    finally:
        session.close()
    if campaign.stop_requested():
        raise Interrupted(campaign.folder)
    return _finish(folder, number, loop, time.monotonic() - started)


def _session(campaign: Campaign, number: int) -> Session:
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
        optimizer.memory(train),
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
    prep, seed = campaign.card.preprocessing, settings.seed
    train, valid = np.flatnonzero(campaign.fold_of != number), np.flatnonzero(campaign.fold_of == number)
    if not len(train) or not len(valid):
        raise DataError(f"fold {number} has {len(train)} training and {len(valid)} validation images; change folds")
    paths = np.array(table.paths, dtype=object)
    batch = min(settings.train.batch_size or 1, len(train))
    optimizer.memory(settings.train).size(batch)  # refuses a micro-batch that does not divide it
    transform = augment.by_epoch(settings.augment, prep, settings.train.epochs)
    return engine.FoldData(
        train=Loader(list(paths[train]), transform, prep.size, batch, settings.data.workers, seed, campaign.images),
        train_labels=table.labels[train],
        train_targets=smoothed(table.labels[train], len(table.class_names), settings.loss.label_smoothing),
        valid=Loader(
            list(paths[valid]),
            augment.eval_transform(prep),
            prep.size,
            settings.train.val_batch_size or batch,
            settings.data.workers,
            seed,
            campaign.images,
        ),
        valid_labels=table.labels[valid],
        valid_ids=[table.ids[i] for i in valid],
        size=prep.size,
        raise_to=sampling.raise_to(settings.class_imbalance, table.class_names),
    )


def _finish(folder: Path, number: int, loop: Loop, seconds: float) -> dict[str, Any]:
    with np.load(folder / "oof.npz") as oof:
        scores = metrics.scores(oof["logits"], oof["targets"])
    row = {
        "fold": number,
        **{name: round(value, 6) for name, value in scores.items()},
        "best_epoch": loop.stopping.best_epoch + 1,
        "epochs": len(loop.history),
        "seconds": round(seconds, 1),
    }
    _write_yaml(folder / "result.yaml", row)
    return row


def _write_yaml(path: Path, value: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(yaml.safe_dump(value, sort_keys=False))
    partial.replace(path)
