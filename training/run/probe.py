"""A new classifier from a linear probe, on either engine: the features of the training images, and the fit on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from backends.contract import Backend, LossSpec, OptimSpec, Weights
from config.schema import Settings
from data.loading.loader import Loader
from models.registry import ModelSpec
from models.weights import loading
from training.loop import evaluation
from training.policy import finetune


def is_needed(found: Mapping[str, NDArray[np.float32]], spec: ModelSpec) -> bool:
    """Whether the weights that were found have no classifier for the model's classes."""
    if not isinstance(spec.classifier, str) or not spec.classifier:
        return False
    old = found.get(f"{spec.classifier}.weight")
    return old is None or old.shape[0] != spec.num_classes


def with_probe(
    backend: Backend, spec: ModelSpec, settings: Settings, start: Weights, loader: Loader, labels: NDArray[np.int64]
) -> tuple[Weights, str]:
    """The weights with a classifier that is fitted on the images of `loader`, of int64 `labels`, and a note of it."""
    bare = replace(spec, num_classes=0, drop_rate=0.0, drop_path_rate=0.0)
    trunk = loading.fit(start, bare)[0]
    session = backend.open(bare, trunk, OptimSpec(), LossSpec(), settings.train.precision, settings.seed, False)
    try:
        features = evaluation.evaluate(session, loader, len(labels))
    finally:
        session.close()
    kept = evaluation.answered(features)
    found = finetune.probe(features[kept], labels[kept], spec.num_classes, settings.seed)
    names = f"{spec.classifier}.weight", f"{spec.classifier}.bias"
    if found is None or start[names[0]].shape != found.weight.shape:
        return start, ""
    values = dict(zip(names, found[:2], strict=True))
    note = f"{names[0]} starts from a logistic regression on the features of {kept.sum()} images (C {found.strength:g})"
    return {**start, **{name: values[name] for name in names if name in start}}, note
