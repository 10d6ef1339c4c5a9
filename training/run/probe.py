"""How fine-tuning on few images starts, on either engine: a linear probe of the features decides on BatchNorm's
statistics and gives the new classifier. The rule itself stands in `training.policy.finetune`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.contract import Backend, Session, SessionConfig, Weights, is_buffer
from config.schema import Settings
from config.text import counted
from data.loading.loader import Loader
from data.rng import philox
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
    enlarged: bool,
) -> Start:
    """What `optim.batch_norm` and `optim.head_init` make of pretrained weights and the few images of `loader`, of int64
    `labels`; `new_head` says whether the weights lack a classifier, `enlarged` whether the images are smaller than the
    network's input."""
    optim = settings.optim
    compares = optim.batch_norm == "auto" and enlarged and any(is_buffer(name) for name in start)
    fixed = optim.batch_norm == "fixed"
    wants = new_head and (optim.head_init == "probe" or (optim.head_init == "auto" and (fixed or compares)))
    if not compares and not wants:
        return Start(start, fixed)
    bare = replace(spec, num_classes=0, drop_rate=0.0, drop_path_rate=0.0)
    trunk, notes = loading.fit(start, bare)[0], []
    session = backend.open(
        bare, trunk, SessionConfig(precision=settings.train.precision, seed=settings.seed, compile=False)
    )
    try:
        features = evaluation.evaluate(session, loader, len(labels))
        kept = evaluation.answered(features)
        before = finetune.judged(features[kept], labels[kept], settings.seed)
        if compares and before is not None:
            fixed, note = _compared(session, loader, before, kept, labels, settings.seed)
            notes.append(note)
    finally:
        session.close()
    if new_head and (optim.head_init == "probe" or (optim.head_init == "auto" and fixed)):
        start, note = _with_head(start, spec, features[kept], labels[kept], settings.seed, before)
        notes.append(note)
    return Start(start, fixed, tuple(note for note in notes if note))


def _compared(
    session: Session,
    loader: Loader,
    before: finetune.Answers,
    kept: NDArray[np.bool_],
    labels: NDArray[np.int64],
    seed: int,
) -> tuple[bool, str]:
    """Whether the pretrained statistics, whose features were judged as `before`, are clearly better than the images'
    own; `kept` are the images that could be read."""
    session.recalibrate(_whole_batches(loader, len(labels), seed))
    own = evaluation.evaluate(session, loader, len(labels))
    after = finetune.judged(own[kept], labels[kept], seed)
    if after is None:
        return False, ""
    fixed = finetune.clearly_better(before, after)
    choice = "keeps the pretrained statistics" if fixed else "takes each batch's own statistics"
    losses = (
        f"{before.losses.mean():.3f} with the pretrained ones, {after.losses.mean():.3f} with those of these images"
    )
    return fixed, f"BatchNorm {choice} (log loss of a linear probe: {losses})"


def _whole_batches(loader: Loader, count: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """The images in a drawn order, without a last batch that is not full."""
    order = philox(seed, "statistics").permutation(count)
    for loaded in loader.epoch(order[: max(count // loader.batch_size, 1) * loader.batch_size]):
        yield loaded.images


def _with_head(
    start: Weights,
    spec: ModelSpec,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    seed: int,
    answers: finetune.Answers | None,
) -> tuple[Weights, str]:
    """The weights with the linear probe as their classifier, and a note of it."""
    found = finetune.probe(features, labels, spec.num_classes, seed, answers)
    names = f"{spec.classifier}.weight", f"{spec.classifier}.bias"
    if found is None or start[names[0]].shape != found.weight.shape:
        return start, ""
    values = dict(zip(names, found[:2], strict=True))
    note = (
        f"{names[0]} starts from a logistic regression on the features of {counted(len(labels), 'image')} (C "
        f"{found.strength:g})"
    )
    return {**start, **{name: values[name] for name in names if name in start}}, note
