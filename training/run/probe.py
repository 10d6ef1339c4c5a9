"""The start of fine-tuning on few images, on either engine: the size of the images decides on BatchNorm's statistics,
and a linear probe of the features gives the new classifier. `training.policy.finetune` has the rules."""

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
    """The weights that a fold starts from, whether BatchNorm keeps their statistics, and notes for the user."""

    weights: Weights
    fixed_statistics: bool
    notes: tuple[str, ...] = ()


def is_needed(weights: Mapping[str, NDArray[np.float32]], spec: ModelSpec) -> bool:
    """Whether pretrained weights have no classifier for the model's classes."""
    if not isinstance(spec.classifier, str) or not spec.classifier:
        return False
    old = weights.get(f"{spec.classifier}.weight")
    return old is None or old.shape[0] != spec.num_classes


def started(
    backend: Backend,
    spec: ModelSpec,
    settings: Settings,
    start: Weights,
    loader: Loader,
    labels: NDArray[np.int64],
    new_head: bool,
    reader: Images,
) -> Start:
    """Apply `optim.batch_norm` and `optim.head_init` to pretrained weights, by the few images of `loader` with int64
    `labels`; `new_head` says whether the weights lack a classifier, `reader` reads the loader's files."""
    optim, size, notes = settings.optim, spec.preprocessing.size, list[str]()
    fixed = optim.batch_norm == "fixed"
    if optim.batch_norm == "auto" and any(map(is_buffer, start)):
        side = median_side(reader, loader.paths)
        fixed = finetune.are_enlarged(side, size)
        note = f"BatchNorm keeps the pretrained statistics, as the images are enlarged ({side} to {size} pixels)"
        notes += [note] * fixed
    if new_head and (optim.head_init == "probe" or (optim.head_init == "auto" and fixed)):
        bare = replace(spec, num_classes=0, drop_rate=0.0, drop_path_rate=0.0)
        config = SessionConfig(precision=settings.train.precision, seed=settings.seed, compile=False)
        with closing(backend.open(bare, loading.fit(start, bare)[0], config)) as session:
            features = evaluation.evaluate(session, loader, len(labels))
        readable = evaluation.answered(features)
        head = finetune.probe(features[readable], labels[readable], spec.num_classes, settings.seed)
        weight, bias = f"{spec.classifier}.weight", f"{spec.classifier}.bias"
        if head is not None and start[weight].shape == head.weight.shape:
            start = {**start, weight: head.weight} | ({bias: head.bias} if bias in start else {})
            images = counted(int(readable.sum()), "image")
            notes.append(
                f"{weight} starts from a logistic regression on the features of {images} (C {head.strength:g})"
            )
    return Start(start, fixed, tuple(notes))
