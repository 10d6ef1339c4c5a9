"""Plots that several reports have: confusion matrices and reliability diagrams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ensemble.calibration.scaling import Bins

_LABELLED_CELLS, _LONGEST = 25, 32  # classes whose counts are written, characters of a name


def confusion_figure(
    counts: NDArray[np.int64], names: Sequence[str], title: str = "Confusion matrix, out of fold"
) -> Figure:
    """A confusion matrix `[C, C]` coloured by the share of each true class; counts are written where they fit."""
    names = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]
    side, labels = min(max(2.5, 0.42 * len(names)), 12), 0.5
    if len(names) <= 2 * _LABELLED_CELLS:
        labels += 0.1 * max(map(len, names))  # inches of the longest name
    figure = Figure(figsize=(max(side + labels + 1.5, 5), side + labels + 0.5), layout="constrained")
    axis = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, shrink=0.8, aspect=30, label="Share of true class")
    axis.set(xlabel="Predicted", ylabel="True", title=title)
    if len(names) <= 2 * _LABELLED_CELLS:
        turned = max(map(len, names)) > 3
        axis.set_xticks(range(len(names)), names, rotation=90 if turned else 0)
        axis.set_yticks(range(len(names)), names)
    if len(names) <= _LABELLED_CELLS:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if share[row, column] > 0.5 else "black"
            axis.text(column, row, counts[row, column], ha="center", va="center", color=colour, fontsize=8)
    return figure


def reliability_figure(bins: Bins, ece: float, title: str) -> Figure:
    """Accuracy over confidence in equal bins, with the gap to the diagonal, above how many images each bin has."""
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    width = 1 / len(bins.images)
    left = np.arange(len(bins.images)) * width
    accuracy, confidence = np.nan_to_num(bins.accuracy), np.nan_to_num(bins.confidence)
    upper.bar(left, accuracy, width, align="edge", color="C0", edgecolor="white", label="Accuracy")
    gap = {"edgecolor": "C3", "facecolor": "none", "hatch": "///", "linewidth": 0.8, "label": "Gap to confidence"}
    upper.bar(left, confidence - accuracy, width, accuracy, align="edge", **gap)
    upper.plot([0, 1], [0, 1], color="grey", ls="--", lw=1)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="Accuracy", title=f"{title}\nECE {ece:.4f}")
    upper.legend(loc="upper left", fontsize=8)
    lower.bar(left, bins.images, width, align="edge", color="grey", edgecolor="white")
    lower.set(xlabel="Confidence (top-1 probability)", ylabel="Images")
    return figure
