"""Adaptive test-time augmentation: one member and one view for every image, all of them for those that are unsure.

An image is unsure when the margin between its two greatest probabilities is under a threshold, which `fit` finds on
out-of-fold (OOF) predictions. `FittedMargin` reports what it costs in accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from config.errors import ConfigError
from ensemble.calibration.scaling import Floats, log_softmax
from ensemble.ensemble_file import Ensemble
from infer.batched_forward import EnsembleForward, Known, Predictions, finish, gather
from infer.prepare import Prepared


@dataclass(frozen=True)
class FittedMargin:
    """The effect of a threshold on N images: accuracies in [0, 1], and the mean number of `passes` per image."""

    threshold: float
    rows: int
    unsure: float
    first_accuracy: float
    full_accuracy: float
    accuracy: float
    passes: float
    full_passes: int

    def text(self) -> str:
        """One line for people."""
        return (
            f"adaptive: margin under {self.threshold:.4f} for {self.unsure:.1%} of {self.rows} images; accuracy "
            f"{self.accuracy:.4f} (always everything {self.full_accuracy:.4f}, always one pass "
            f"{self.first_accuracy:.4f}); {self.passes:.2f} passes an image in place of {self.full_passes}"
        )


def margin(log_probabilities: ArrayLike) -> Floats:
    """float64 `[N]`: the difference of the two greatest probabilities of each row of `[N, C]`, 1 for a single class."""
    top = np.sort(np.exp(np.asarray(log_probabilities, np.float64)), axis=1)[:, -2:]
    return top[:, 1] - top[:, 0] if top.shape[1] == 2 else np.ones(len(top))


def fit(
    first: ArrayLike, full: ArrayLike, targets: NDArray[np.int64], full_passes: int, loss: float = 0.0
) -> FittedMargin:
    """The smallest threshold whose accuracy is at most `loss` below that of the full predictions.

    `first` and `full` are log probabilities `[N, C]` of one pass and of `full_passes`. Where accuracy first rises above
    the full one and falls later, the smallest threshold is still taken: it is the cheapest.
    """
    sure, first_label, all_of_them = margin(first), np.asarray(first).argmax(axis=1), np.asarray(full).argmax(axis=1)
    order = np.argsort(sure, kind="stable")
    gained = (all_of_them == targets)[order].astype(int) - (first_label == targets)[order]
    # Right predictions when the k least sure images get everything.
    correct = np.concatenate([[0], np.cumsum(gained)]) + (first_label == targets).sum()
    wanted = (all_of_them == targets).sum() - loss * len(targets)
    edges = np.append(sure[order], np.inf)
    ends = np.flatnonzero(np.append(np.diff(edges) > 0, True))  # equal margins are sure or unsure together
    possible = [k for k in (0, *(ends[ends < len(order)] + 1)) if correct[k] >= wanted - 1e-9]
    count = int(min(possible))
    threshold = 0.0 if count == 0 else 1.0 if count == len(order) else float((edges[count - 1] + edges[count]) / 2)
    n = len(targets)
    return FittedMargin(
        threshold,
        n,
        count / n,
        float(correct[0] / n),
        float(correct[-1] / n),
        float(correct[count] / n),
        1 + count / n * (full_passes - 1),
        full_passes,
    )


@dataclass(frozen=True, eq=False)
class AdaptiveForward:
    """All members and views for unsure images only; the first view of member `first` for all images."""

    panel: EnsembleForward
    threshold: float
    first: int

    def predict(self, batches: Sequence[Prepared]) -> list[Predictions]:
        """The predictions of a round; for a sure image all members' votes are that of the first."""
        logs = [self.panel.once(self.first, batch.images) for batch in batches]
        temperature = self.panel.ensemble.members[self.first].temperature
        firsts = [log_softmax(logits, temperature) for logits in logs]
        unsure = [
            np.flatnonzero((margin(first)[: len(batch.rows)] < self.threshold) & ~np.isin(batch.rows, [*batch.errors]))
            for batch, first in zip(batches, firsts, strict=True)
        ]
        probabilities = [np.exp(first).astype(np.float32) for first in firsts]
        chosen = [np.repeat(first.argmax(axis=1)[:, None], len(self.panel.places), axis=1) for first in firsts]
        self._second(batches, logs, unsure, probabilities, chosen)
        more = len(self.panel.places) * len(self.panel.ensemble.views) - 1
        return [
            finish(batch, rows, votes, len(batch.rows) + more * len(positions))
            for batch, rows, votes, positions in zip(batches, probabilities, chosen, unsure, strict=True)
        ]

    def _second(
        self,
        batches: Sequence[Prepared],
        logs: Sequence[NDArray[np.float32]],
        unsure: Sequence[NDArray[np.int64]],
        probabilities: list[NDArray[np.float32]],
        chosen: list[NDArray[np.int64]],
    ) -> None:
        """Predict the unsure images of the round in full batches, and put the results into their rows."""
        where = [(number, row) for number, rows in enumerate(unsure) for row in rows.tolist()]
        size = len(batches[0].images[0])
        key = (self.first, self.panel.ensemble.views[0])
        for start in range(0, len(where), size):
            chunk = where[start : start + size]
            images = gather(batches, chunk, set().union(*self.panel.inputs_of))
            logits = np.zeros((size, logs[0].shape[1]), np.float32)
            logits[: len(chunk)] = [logs[number][row] for number, row in chunk]
            known: Known = {key: [logits]}
            alone = self.panel.alone([images], known)[0]
            mixed = self.panel.finish.probabilities(alone)
            for k, (number, row) in enumerate(chunk):
                probabilities[number][row] = mixed[k]
                chosen[number][row] = [rows[k].argmax() for rows in alone]


def check(ensemble: Ensemble) -> float:
    """The fitted threshold; `ConfigError` for an ensemble that has none."""
    if ensemble.adaptive is None:
        raise ConfigError(
            "--tta adaptive: the ensemble has no fitted threshold; "
            "run `python -m infer adapt FILE --out NEW_FILE` and give --ensemble NEW_FILE"
        )
    return ensemble.adaptive


def strongest(ensemble: Ensemble) -> int:
    """The member that predicts first: the one of greatest weight."""
    return int(np.argmax([member.weight for member in ensemble.members]))
