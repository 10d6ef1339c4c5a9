"""How fine-tuning on few images starts, on either engine: the size of the images decides on BatchNorm's statistics, and
a linear probe of the features gives the new classifier. The rules stand in `training.policy.finetune`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.contract import Backend, SessionConfig, Weights, is_buffer
from config.schema import Settings
from config.text import counted
from data.cache.images import Images, median_side
from data.loading.loader import Loader
from models.registry import ModelSpec
from models.weights import loading
from training.loop import evaluation
from training.policy import finetune


class Start(NamedTuple):
    """The weights that a fold starts from, whether BatchNorm keeps their statistics, and what the user is told."""

    weights: Weights
    fixed_statistics: bool
    notes: tuple[str, ...] = ()


def is_needed(found: Mapping[str, NDArray[np.float32]], spec: ModelSpec) -> bool:
    """Whether the weights that were found have no classifier for the model's classes."""
    if not isinstance(spec.classifier, str) or not spec.classifier:
        return False
    old = found.get(f"{spec.classifier}.weight")
    return old is None or old.shape[0] != spec.num_classes


def started(
    backend: Backend,
    spec: ModelSpec,
    settings: Settings,
    start: Weights,
    loader: Loader,
    labels: NDArray[np.int64],
    new_head: bool,
    images: Images,
) -> Start:
    """What `optim.batch_norm` and `optim.head_init` make of pretrained weights and the few images of `loader`, of int64
    `labels`; `new_head` says whether the weights lack a classifier, `images` reads the
    loader's files."""
    optim, size, notes = settings.optim, spec.preprocessing.size, list[str]()
    fixed = optim.batch_norm == "fixed"
    if optim.batch_norm == "auto" and any(map(is_buffer, start)):
        side = median_side(images, loader.paths)
        fixed = finetune.are_enlarged(side, size)
        what = f"BatchNorm keeps the pretrained statistics, as the images are enlarged ({side} to {size} pixels)"
        notes += [what] * fixed
    if new_head and (optim.head_init == "probe" or (optim.head_init == "auto" and fixed)):
        bare = replace(spec, num_classes=0, drop_rate=0.0, drop_path_rate=0.0)
        config = SessionConfig(precision=settings.train.precision, seed=settings.seed, compile=False)
        with closing(backend.open(bare, loading.fit(start, bare)[0], config)) as session:
            features = evaluation.evaluate(session, loader, len(labels))
        kept = evaluation.answered(features)
        start, note = _with_head(start, spec, features[kept], labels[kept], settings.seed)
        notes.append(note)
    return Start(start, fixed, tuple(note for note in notes if note))


def _with_head(
    start: Weights,
    spec: ModelSpec,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    seed: int,
) -> tuple[Weights, str]:
    """The weights with the linear probe as their classifier, and a note of it."""
    found = finetune.probe(features, labels, spec.num_classes, seed)
    names = f"{spec.classifier}.weight", f"{spec.classifier}.bias"
    if found is None or start[names[0]].shape != found.weight.shape:
        return start, ""
    values = dict(zip(names, found[:2], strict=True))
    note = (
        f"{names[0]} starts from a logistic regression on the features of {counted(len(labels), 'image')} (C "
        f"{found.strength:g})"
    )
    return {**start, **{name: values[name] for name in names if name in start}}, note
