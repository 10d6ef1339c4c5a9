"""Compares artefacts with their checkpoint on real image files, and judges them by thresholds of their precision.

Files are decoded and preprocessed as the runner does it. The reference is the checkpoint in fp32 on torch's CPU, its
own rounding error is measured against float64. Reports are `report.py`'s.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from backends.contract import Weights
from config.errors import ConvertError
from convert import torch_graph
from data import index
from data.augment import eval_transform
from data.images import Images
from data.index import Table
from data.loader import Loader
from infer import predictors
from infer.predictors import Predictor
from models.card import Card

_BATCH = 16
_COMPUTE_UNITS = ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
# Below this a log loss differs by nothing that a user could see, so relative bounds count from here.
_SMALL_LOG_LOSS = 0.01


class VerificationFailed(ConvertError):
    """A converted artefact is outside the thresholds of its precision."""

    exit_code = 4


class Artefact(NamedTuple):
    """A converted file and the precision it was converted to."""

    path: Path
    precision: str


@dataclass(frozen=True)
class Limits:
    """What an artefact of a precision may differ. `floors`: logits, in multiples of torch's own fp32 error (0: any)."""

    top1_agreement: float
    floors: float = 0.0
    log_loss: float = float("inf")


LIMITS = {"fp32": Limits(top1_agreement=1.0, floors=5.0), "fp16": Limits(top1_agreement=0.999, log_loss=0.01)}


@dataclass(frozen=True)
class Comparison:
    """One artefact on one runtime against its checkpoint.

    Logit differences are absolute; `torch_error` is the largest difference of torch's fp32 logits from its float64
    ones on the same images; `kl_divergence` is the mean of KL(checkpoint || artefact) in nats; log losses are of the
    images' labels, or of the checkpoint's own top-1 where `labelled` is false. `faults` is empty when all is within
    the limits.
    """

    artefact: str
    runtime: str
    precision: str
    images: int
    labelled: bool
    top1_agreement: float
    max_logit_difference: float
    mean_logit_difference: float
    torch_error: float
    kl_divergence: float
    log_loss: float
    log_loss_checkpoint: float
    faults: tuple[str, ...]


def table(images: Path, card: Card) -> Table:
    """The images to verify on: labelled class folders or train.csv where `images` has them, else as for `infer`.

    Raises `DataError` when there are none.
    """
    labelled = (images / "train.csv").is_file() or any((images / name).is_dir() for name in card.class_names)
    return index.load(images) if labelled else index.load_test(images)


def compare(weights: Weights, card: Card, artefacts: Sequence[Artefact], images: Table) -> list[Comparison]:
    """Run all artefacts on every runtime that this machine has for them. Raises `DataError` for unreadable images."""
    opened = [(artefact, name, predictor) for artefact in artefacts for name, predictor in _open(artefact.path)]
    original = torch_graph.reference(weights, card)
    reference, exact = [], []
    answers: list[list[NDArray]] = [[] for _ in opened]
    try:
        for batch in _batches(images, card):
            single, double = original(batch)
            reference.append(single)
            exact.append(double)
            for rows, (_, _, predictor) in zip(answers, opened, strict=True):
                rows.append(predictor.logits(batch))
    finally:
        for _, _, predictor in opened:
            predictor.close()
    ours = np.concatenate(reference)
    error = float(np.abs(ours - np.concatenate(exact)).max())
    labels = _labels(images, card)
    return [
        measure(artefact, name, np.concatenate(rows), ours, error, labels)
        for (artefact, name, _), rows in zip(opened, answers, strict=True)
    ]


def measure(
    artefact: Artefact,
    runtime: str,
    logits: NDArray[np.float32],
    reference: NDArray[np.float32],
    torch_error: float,
    labels: NDArray[np.int64] | None,
) -> Comparison:
    """Compare logits `[N, C]` with the checkpoint's; `labels` int64 `[N]`, -1 for an image that has none."""
    top1 = reference.argmax(1)
    targets = top1 if labels is None else np.where(labels >= 0, labels, top1)
    answer, wanted = log_softmax(logits.astype(np.float64), 1), log_softmax(reference.astype(np.float64), 1)
    rows = np.arange(len(targets))
    difference = np.abs(logits.astype(np.float64) - reference)
    agreement = float((logits.argmax(1) == top1).mean())
    loss, loss_before = float(-answer[rows, targets].mean()), float(-wanted[rows, targets].mean())
    return Comparison(
        artefact=artefact.path.name,
        runtime=runtime,
        precision=artefact.precision,
        images=len(reference),
        labelled=labels is not None,
        top1_agreement=agreement,
        max_logit_difference=float(difference.max()),
        mean_logit_difference=float(difference.mean()),
        torch_error=torch_error,
        kl_divergence=float((np.exp(wanted) * (wanted - answer)).sum(1).mean()),
        log_loss=loss,
        log_loss_checkpoint=loss_before,
        faults=_faults(LIMITS[artefact.precision], agreement, float(difference.max()), torch_error, loss, loss_before),
    )


def _faults(
    limits: Limits, agreement: float, difference: float, torch_error: float, loss: float, loss_before: float
) -> tuple[str, ...]:
    """The limits that are not held; a NaN holds none."""
    faults = []
    if not agreement >= limits.top1_agreement:
        faults.append(f"top-1 agreement {agreement:.4%}, at least {limits.top1_agreement:.2%} wanted")
    if limits.floors and not difference <= limits.floors * torch_error:
        bound = limits.floors * torch_error
        faults.append(
            f"logits differ by {difference:.2e}, at most {limits.floors:g} x torch's own = {bound:.2e} wanted"
        )
    allowed = limits.log_loss * max(loss_before, _SMALL_LOG_LOSS)
    if not abs(loss - loss_before) <= allowed:
        faults.append(f"log loss {loss:.5f} instead of {loss_before:.5f}, within {limits.log_loss:.0%} wanted")
    return tuple(faults)


def _open(path: Path) -> Iterator[tuple[str, Predictor]]:
    if path.suffix != ".mlpackage":
        yield "onnx", predictors.open(path, "onnx")
        return
    if sys.platform == "darwin":
        for unit in _COMPUTE_UNITS:
            yield f"coreml {unit}", predictors.open(path, "coreml", compute_units=unit)
    yield "mil_reference", predictors.open(path, "mil_reference")


def _batches(images: Table, card: Card) -> Iterator[NDArray[np.uint8]]:
    prep = card.preprocessing
    loader = Loader(images.paths, eval_transform(prep), prep.size, _BATCH, images=Images(cache_bytes=0))
    for batch in loader.epoch(np.arange(len(images.paths))):
        yield batch.images[batch.weight > 0]


def _labels(images: Table, card: Card) -> NDArray[np.int64] | None:
    """Positions in the card's classes, -1 for a class it does not have; None when no image has a label."""
    places = {name: k for k, name in enumerate(card.class_names)}
    columns = np.array([places.get(name, -1) for name in images.class_names] + [-1], np.int64)
    labels = columns[images.labels]
    return labels if (labels >= 0).any() else None
