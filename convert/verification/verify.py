"""Compares artefacts with their checkpoint on real image files, and judges them by thresholds of their precision.

Files are decoded and preprocessed as the runner does it. The reference is the checkpoint in fp32 on torch's CPU, or the
runner's answer where it is an ensemble; torch's own rounding error is measured against float64. Reports are `report`'s.
"""

from __future__ import annotations

import contextlib
import math
import platform
import statistics
import sys
import timeit
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from config.errors import ConvertError, UnsupportedOperation, WeightsError
from convert.graph import torch_network
from convert.source import Source
from convert.verification import pictures
from convert.verification.precision import PRECISIONS, Limits
from data.sources import Table
from infer import runtimes
from infer.runner import Runner
from infer.runtimes import Predictor
from infer.runtimes import onnx as onnx_runtime

_COMPUTE_UNITS = ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
# Below this a log loss differs by nothing that a user could see, so relative bounds count from here.
_SMALL_LOG_LOSS = 0.01
# An ensemble's log probabilities below this one's are rounding of a sum.
_LEAST_PROBABILITY = 1e-30
_TIMED, _LONG_MS = 5, 2000


class VerificationFailed(ConvertError):
    """A converted artefact is outside the thresholds of its precision."""

    exit_code = 4


class Artefact(NamedTuple):
    """A converted file and the precision it was converted to."""

    path: Path
    precision: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One artefact on one runtime against its checkpoint; the defaults are those of an artefact that gave no logits.

    Logit differences are absolute; `torch_error` is the largest difference of torch's fp32 logits from its float64
    ones on the same images; `kl_divergence` is the mean of KL(checkpoint || artefact) in nats; log losses are of the
    images' labels, or of the checkpoint's own top-1 where `labelled` is false, and so are accuracies, None then.
    `tied_flips` of the images with another top-1 are ties (see `Limits`), which are no fault; `clear_agreement` is the
    top-1 agreement of the images that are none. `megabytes` is the artefact's size;
    `milliseconds` the median of one image on the machine of the report, None where the runtime says nothing of speed.
    `faults` is empty when all is within the limits. `not_tried` are the runtimes that the artefact is made for and that
    the machine does not have.
    """

    artefact: str
    runtime: str
    precision: str
    images: int
    labelled: bool
    top1_agreement: float = math.nan
    max_logit_difference: float = math.nan
    mean_logit_difference: float = math.nan
    torch_error: float = math.nan
    kl_divergence: float = math.nan
    log_loss: float = math.nan
    log_loss_checkpoint: float = math.nan
    accuracy: float | None = None
    accuracy_checkpoint: float | None = None
    tied_flips: int = 0
    clear_agreement: float = math.nan
    megabytes: float
    milliseconds: float | None = None
    milliseconds_checkpoint: float | None = None
    machine: str
    not_tried: tuple[str, ...]
    faults: tuple[str, ...]


class Measured(NamedTuple):
    """The results of one runtime: logits `[N, C]`, and the milliseconds of one image."""

    runtime: str
    logits: NDArray[np.float32]
    milliseconds: float | None


class NotRun(NamedTuple):
    """A runtime that could not execute an artefact, and why."""

    runtime: str
    reason: str


def compare(
    source: Source, network: torch_network.Network, artefacts: Sequence[Artefact], images: Table
) -> list[Comparison]:
    """Run all artefacts on every runtime that this machine has for them. Raises `DataError` for unreadable images.

    One that cannot be executed is a comparison without numbers whose fault says why.
    """
    ours, error, before = _reference(source, network, images)
    labels = pictures.labels(images, source.card)
    least = np.log(_LEAST_PROBABILITY) if source.ensemble is not None else -np.inf
    rows = []
    for artefact in artefacts:
        # An artefact that resizes images itself does not see the runner's pixels.
        limits = PRECISIONS["fp16" if source.resized and artefact.precision == "fp32" else artefact.precision].limits
        for measured in _run(artefact.path, images, source):
            if isinstance(measured, NotRun):
                rows.append(not_run(artefact, measured, len(ours), labels is not None))
                continue
            clipped = measured._replace(logits=np.maximum(measured.logits, least))
            rows.append(measure(artefact, clipped, np.maximum(ours, least), error, labels, before, limits))
    return rows


def not_here(path: Path) -> tuple[str, ...]:
    """The runtimes that an artefact is made for and that this machine does not have."""
    if path.suffix == ".onnx":
        return tuple(p for p in onnx_runtime.PROVIDERS if p not in onnx_runtime.available(path))
    return tuple(f"Core ML {unit}" for unit in _COMPUTE_UNITS) if sys.platform != "darwin" else ()


def measure(
    artefact: Artefact,
    measured: Measured,
    reference: NDArray[np.float32],
    torch_error: float,
    labels: NDArray[np.int64] | None,
    milliseconds: float | None = None,
    limits: Limits | None = None,
) -> Comparison:
    """Compare logits `[N, C]` with the checkpoint's; `labels` int64 `[N]`, -1 for an image that has none.

    `limits` are those of the artefact's precision where no others are given.
    """
    limits = limits or PRECISIONS[artefact.precision].limits
    logits, top1 = measured.logits, reference.argmax(1)
    targets = top1 if labels is None else np.where(labels >= 0, labels, top1)
    logs, wanted = log_softmax(logits.astype(np.float64), 1), log_softmax(reference.astype(np.float64), 1)
    rows = np.arange(len(targets))
    difference = np.abs(logits.astype(np.float64) - reference)
    flipped = (logits.argmax(1) != top1) | ~np.isfinite(logits).all(1)
    first, second = np.sort(wanted, axis=1)[:, :-3:-1].T
    tied = first - second <= np.log1p(limits.ties) + 2 * limits.floors * torch_error
    clear = float(1 - flipped[~tied].mean()) if not tied.all() else 1.0
    accuracy, accuracy_before, lost = _accuracies(logits, reference, labels, tied)
    loss, loss_before = float(-logs[rows, targets].mean()), float(-wanted[rows, targets].mean())
    return Comparison(
        artefact=artefact.path.name,
        runtime=measured.runtime,
        precision=artefact.precision,
        images=len(reference),
        labelled=labels is not None,
        top1_agreement=float(1 - flipped.mean()),
        max_logit_difference=float(difference.max()),
        mean_logit_difference=float(difference.mean()),
        torch_error=torch_error,
        kl_divergence=float((np.exp(wanted) * (wanted - logs)).sum(1).mean()),
        log_loss=loss,
        log_loss_checkpoint=loss_before,
        accuracy=accuracy,
        accuracy_checkpoint=accuracy_before,
        tied_flips=int((flipped & tied).sum()),
        clear_agreement=clear,
        megabytes=size(artefact.path) / 1e6,
        milliseconds=measured.milliseconds,
        milliseconds_checkpoint=milliseconds,
        machine=machine(),
        not_tried=not_here(artefact.path),
        faults=faults(limits, clear, lost, float(difference.max()), torch_error, loss, loss_before),
    )


def _accuracies(
    logits: NDArray[np.float32], reference: NDArray[np.float32], labels: NDArray[np.int64] | None, tied: NDArray
) -> tuple[float | None, float | None, float]:
    """The accuracies of an artefact and its checkpoint, and by how much it is lower when ties are left as they were."""
    if labels is None:
        return None, None, 0.0
    known = labels >= 0
    after = ((logits.argmax(1) == labels) & np.isfinite(logits).all(1))[known]
    before = (reference.argmax(1) == labels)[known]
    lost = before.astype(float) - after
    return float(after.mean()), float(before.mean()), float(np.where(tied[known], 0.0, lost).mean())


def not_run(artefact: Artefact, failure: NotRun, images: int, labelled: bool) -> Comparison:
    """The comparison of an artefact that gave no logits: its measures are NaN, its one fault says why."""
    return Comparison(
        artefact=artefact.path.name,
        runtime=failure.runtime,
        precision=artefact.precision,
        images=images,
        labelled=labelled,
        megabytes=size(artefact.path) / 1e6,
        machine=machine(),
        not_tried=not_here(artefact.path),
        faults=(f"cannot be executed: {failure.reason}",),
    )


def faults(
    limits: Limits,
    agreement: float,
    accuracy_lost: float,
    difference: float,
    torch_error: float,
    loss: float,
    loss_before: float,
) -> tuple[str, ...]:
    """The limits that are not held; a NaN holds none. Agreement and lost accuracy are without ties."""
    messages = []
    if not agreement >= limits.top1_agreement:
        messages.append(f"top-1 agreement {agreement:.4%} without ties, at least {limits.top1_agreement:.2%} wanted")
    if not accuracy_lost <= limits.accuracy:
        messages.append(
            f"{100 * accuracy_lost:.2f} points of accuracy lost without ties, at most {100 * limits.accuracy:g} wanted"
        )
    if limits.floors and not difference <= limits.floors * torch_error:
        bound = limits.floors * torch_error
        messages.append(
            f"logits differ by {difference:.2e}, at most {limits.floors:g} x torch's own = {bound:.2e} wanted"
        )
    allowed = limits.log_loss * max(loss_before, _SMALL_LOG_LOSS)
    if not abs(loss - loss_before) <= allowed:
        messages.append(f"log loss {loss:.5f} instead of {loss_before:.5f}, within {limits.log_loss:.0%} wanted")
    return tuple(messages)


def size(path: Path) -> int:
    """Bytes of an artefact, a file with what lies beside it, or a folder."""
    files = [path, Path(f"{path}.data")] if path.is_file() else list(path.rglob("*"))
    return sum(p.stat().st_size for p in files if p.is_file())


def machine() -> str:
    """The platform and processor that the milliseconds are of."""
    return f"{platform.system()} {platform.machine()}, {platform.processor() or 'CPU'}, {onnx_runtime.version()}"


def _reference(source: Source, network: torch_network.Network, images: Table) -> tuple[NDArray, float, float]:
    """The original's logits, torch's own error, and the milliseconds of one image."""
    single, exact = torch_network.reference(network, lambda: pictures.batches(images, source.card))
    first = [array[:1] for array in next(pictures.batches(images, source.card))]
    milliseconds = _median(lambda: torch_network.once(network, *first))  # when it has answered others, as the artefacts
    ours = single
    if source.ensemble is not None:
        members = [m.model_copy(update={"runtime": m.runtime or "torch"}) for m in source.ensemble.members if m.weight]
        with Runner(source.ensemble.model_copy(update={"members": tuple(members)})) as runner:
            probabilities = np.concatenate(
                [a.probabilities for a in runner.run(images.paths, pictures.batch_size(source.card))]
            )
        ours = np.log(np.maximum(probabilities, _LEAST_PROBABILITY))
        exact = np.maximum(exact, np.log(_LEAST_PROBABILITY))
    rounded = np.maximum(single, np.log(_LEAST_PROBABILITY)) if source.resized else ours
    return ours, float(np.abs(rounded - exact).max()), milliseconds


def _run(path: Path, images: Table, source: Source) -> Iterator[Measured | NotRun]:
    for name, opened in _runtimes(path):
        try:
            with contextlib.closing(opened()) as predictor:
                yield _measured(name, predictor, images, source)
        except (UnsupportedOperation, WeightsError) as error:
            yield NotRun(name, str(error))


def _measured(name: str, predictor: Predictor, images: Table, source: Source) -> Measured:
    rows, milliseconds = [], None
    for batch in pictures.batches(images, source.card):
        rows.append(predictor.logits(*batch))
        if milliseconds is None and predictor.runtime != "mil_reference":
            milliseconds = _median(lambda: predictor.logits(*(array[:1] for array in batch)))  # noqa: B023
    return Measured(name, np.concatenate(rows), milliseconds)


def _median(work: Callable[[], object]) -> float:
    """Milliseconds of one call: the median of a few after a first one, which counts where it takes seconds."""
    first = 1e3 * timeit.timeit(work, number=1)
    return first if first > _LONG_MS else 1e3 * statistics.median(timeit.repeat(work, number=1, repeat=_TIMED))


def _runtimes(path: Path) -> Iterator[tuple[str, Callable[[], Predictor]]]:
    """Each runtime's name, and what opens the artefact with it."""
    if path.suffix != ".mlpackage":
        for provider in onnx_runtime.available(path):
            yield (
                f"onnx {provider.removesuffix('ExecutionProvider')}",
                partial(runtimes.open, path, "onnx", providers=(provider,)),
            )
        return
    if sys.platform == "darwin":
        for unit in _COMPUTE_UNITS:
            yield f"coreml {unit}", partial(runtimes.open, path, "coreml", compute_units=unit)
    yield "mil_reference", partial(runtimes.open, path, "mil_reference")
