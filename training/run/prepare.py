"""The preparation of a run: settings resolved against model and data, refusals, the folds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import backends
from config.errors import ConfigError, DataError
from config.places import check_writable
from config.schema import Settings
from config.sections.data import Folds
from data import folds, groups, sources
from data.audit import actions
from data.cache.images import Images
from data.sources import listing
from models import auto, defaults, limits, registry
from models.registry import ModelSpec
from training import trackers
from training.policy import loss as losses
from training.policy import optimizer, resizing
from training.run import run_dir

FOLDS = "folds.csv"


@dataclass(frozen=True)
class SharedData:
    """The images and labels of a run, or of all members of a campaign, the fold of each as `data.folds` makes it, the
    numbers of those to train, and the files that the audit could not read."""

    table: sources.Table
    images: Images
    fold_of: NDArray[np.int64]
    numbers: list[int]
    doubtful: Sequence[Path] = ()


def refuse(settings: Settings, backend: str) -> None:
    """`ConfigError` for a setting that the engine cannot honour and for a folder that cannot be written,
    `BackendUnavailable` for a tracker that is absent.

    What depends on the model is left out while it is still to be chosen.
    """
    resumed = settings.resume not in ("auto", "never")
    check_writable(Path(settings.resume) if resumed else settings.out, "resume" if resumed else "out")
    chosen = settings.model != auto.AUTO
    reason = registry.engines(registry.get(settings.model)).get(backend) if chosen else None
    if reason:
        raise ConfigError(f"model {settings.model}: {reason}; train it with the other engine, or choose another model")
    precision = settings.train.precision
    on_mac = backend == "mlx" and sys.platform == "darwin"
    if (precision == "fp16" and backend != "torch") or (precision == "tf32" and backend != "torch" and not on_mac):
        raise ConfigError(f"train.precision {precision}: torch alone has it; choose auto, fp32 or bf16 with {backend}")
    if settings.train.compile_mode != "default" and backend != "torch":
        raise ConfigError(f"train.compile_mode: torch alone has modes; leave it at default with {backend}")
    for name in ("deterministic", "sync_batch_norm", "fsdp"):
        if getattr(settings.train, name) and backend != "torch":
            raise ConfigError(f"train.{name}: torch alone has it; leave it false with {backend}")
    if settings.train.fsdp:
        _refuse_beside_fsdp(settings)
    trackers.require(settings.track)
    if chosen and backends.ENGINES[backend].builds_networks:
        _refuse_sizes(settings)


def _refuse_beside_fsdp(settings: Settings) -> None:
    """`ConfigError` for what needs whole tensors or an update that no other process takes part in."""
    optim, train = settings.optim, settings.train
    beside = {
        "optim.name muon, which needs whole matrices": optim.name == "muon",
        "optim.clip_factor, which needs whole layers": optim.clip_factor > 0,
        "optim.freeze_epochs": optim.freeze_epochs > 0,
        "train.compile on": train.compile == "on",
        "train.micro_batch auto, which tries updates in one process": "auto" in (train.micro_batch, train.batch_size),
    }
    for name, there in beside.items():
        if there:
            raise ConfigError(f"train.fsdp: does not go with {name}; change it, or set train.fsdp to false")


def _refuse_sizes(settings: Settings) -> None:
    """`ConfigError` for image sizes and micro-batches that the network cannot take."""
    spec = registry.get(settings.model, image_size=settings.data.image_size)
    batch = {"micro_batch": settings.train.micro_batch, **_batch(settings, spec)}
    name = "micro_batch" if isinstance(batch["micro_batch"], int) else "batch_size"
    sizes = dict.fromkeys(settings.progressive.sizes, "progressive.sizes")
    for size, setting in {**sizes, spec.preprocessing.size: "data.image_size"}.items():
        limits.check_size(spec, size, setting)
        limits.check_batch(spec, size, batch[name], f"train.{name}")


def prepare(settings: Settings, table: sources.Table | None = None) -> tuple[Settings, ModelSpec, sources.Table]:
    """Read the data set unless `table` is given, and resolve what depends on it and on the model: image size, classes,
    learning rate, batch size."""
    table = table or actions.load(settings.data).table
    losses.check(settings.loss, table.class_names)
    spec = registry.get(
        settings.model,
        num_classes=len(table.class_names),
        image_size=settings.data.image_size,
        global_pool=settings.global_pool,
        drop_rate=settings.drop.rate,
        drop_path_rate=settings.drop.path,
    )
    default, data = spec.preprocessing, settings.data
    preprocessing = replace(
        default,
        fit=data.resize_mode or default.fit,
        pad=data.pad,
        mean=data.mean or default.mean,
        std=data.std or default.std,
        resampling=data.resampling or default.resampling,
        icc_to_srgb=data.icc_to_srgb,
    )
    spec = replace(spec, preprocessing=preprocessing)
    resizing.check(settings.progressive, spec)
    resolved = {
        "data": {"image_size": spec.preprocessing.size, "resampling": spec.preprocessing.resampling},
        "train": _batch(settings, spec),
        "optim": {"lr": optimizer.learning_rate(settings.optim, spec)},
    }
    updates = {k: getattr(settings, k).model_copy(update=v) for k, v in resolved.items()}
    return settings.model_copy(update=updates), spec, table


def _batch(settings: Settings, spec: ModelSpec) -> dict[str, Any]:
    batch_size = settings.train.batch_size
    if batch_size == "auto":
        return {"batch_size": defaults.batch_size(spec), "micro_batch": settings.train.micro_batch or "auto"}
    return {"batch_size": batch_size or defaults.batch_size(spec)}


def fold_numbers(settings: Settings, fold_of: NDArray[np.int64]) -> list[int]:
    """The folds to train, in order; `ConfigError` for a number that the split does not have."""
    there = folds.numbers(fold_of)
    wanted = there if settings.folds.train is None else list(settings.folds.train)
    unknown = [k for k in wanted if k not in there]
    if unknown:
        raise ConfigError(f"folds.train: there is no fold {unknown[0]}; there are {there}")
    return wanted


def split(settings: Settings, table: sources.Table, images: Images, folder: Path) -> SharedData:
    """The images with the folds of the run or campaign in `folder`: its own `folds.csv`, which is written first where
    it is not there. `ConfigError` where `folds.train` names others.

    The table has the images that these folds name and the data set lost, where such images are to be skipped.
    """
    path = folder / FOLDS
    if not path.exists():
        with run_dir.run_lock(folder):
            if not path.exists():
                folds.write(path, table, draw_folds(settings, table))
    if settings.data.on_bad_image != "error":
        table = folds.with_vanished(path, table)
    fold_of = folds.read(path, table)
    return SharedData(table, images, fold_of, fold_numbers(settings, fold_of))


def draw_folds(settings: Settings, table: sources.Table) -> NDArray[np.int64]:
    """The folds that the settings ask for: the user's own file, or drawn ones; `DataError` where the images do not
    allow them."""
    split = settings.folds
    if split.file:
        return folds.read(split.file, table)
    if split.strategy == "auto" and table.fold_of is not None:
        if not folds.numbers(table.fold_of):
            raise DataError(f"{table.root}: no image of its validation split is left; set folds.strategy holdout")
        folds.check_trained(table.fold_of, table)
        return table.fold_of
    kind = "holdout" if split.strategy == "auto" else split.strategy
    together = groups.read(table, split.group_column, split.groups) if kind == "stratified_group" else None
    if together is not None and table.groups is not None:
        together = groups.joined([together, table.groups])
    fold_of = folds.make(
        table.labels,
        kind,
        split.n_splits,
        split.val_fraction,
        settings.seed,
        table.class_names,
        split.repeats,
        together,
    )
    return fold_of if table.groups is None else folds.united(fold_of, table.groups)


def describe(settings: Settings, table: sources.Table) -> list[str]:
    """Lines about the data set as it was read, and about settings that have no effect on it."""
    split, lines = settings.folds, list(table.summary)
    if table.fold_of is not None and not split.file:
        if split.strategy == "auto":
            lines.append("folds: the data set's own split; set folds.strategy to draw one of all images")
        else:
            lines.append(f"folds: the data set's own split is not used, since folds.strategy is {split.strategy}")
    if settings.data.streaming:
        lines.append("streaming: images are first read while training; no audit or check looks at them before")
    names = [table.class_names[label] for label in table.labels[folds.singles(table.labels)].tolist()]
    if names:
        lines.append(f"classes of a single image are always trained on and never validated: {listing.some(names)}")
    return lines + without_effect(settings)


def without_effect(settings: Settings) -> list[str]:
    """A line for each setting of data and folds that was changed and does nothing beside another one."""
    data, split = settings.data, settings.folds
    by_table = ("table", "images", "id_column", "target_column")
    idle = {f"data.{name}": "data.label_pattern" for name in by_table if data.label_pattern and getattr(data, name)}
    by_streams = ("table", "images", "id_column", "label_pattern")
    idle |= {f"data.{name}": "data.streaming" for name in by_streams if data.streaming and getattr(data, name)}
    kinds = {"n_splits": ("stratified", "stratified_group", "repeated"), "repeats": ("repeated",)}
    kinds["val_fraction"] = ("auto", "holdout")
    for name in ("strategy", *kinds):
        changed = getattr(split, name) != Folds.model_fields[name].default
        if changed and split.file:
            idle[f"folds.{name}"] = "folds.file"
        elif changed and name in kinds and split.strategy not in kinds[name]:
            idle[f"folds.{name}"] = f"folds.strategy {split.strategy}"
    return [f"{name} has no effect beside {other}" for name, other in idle.items()]
