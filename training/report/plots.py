"""Plots: curves of loss, accuracy and F1, confusion matrices, reliability diagrams; `write` makes those of a run."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ensemble.calibration.scaling import Bins
from training.loop import metrics
from training.run.results import class_names, oof

_PANELS = (("log_loss", "Loss"), ("accuracy", "Accuracy"), ("macro_f1", "Macro-F1"))
_LABELLED_CELLS = 25


def write(run: Path) -> list[Path]:
    """Write `plots/curves.png` and `plots/confusion.png` of a run folder; returns their paths."""
    folder = run / "plots"
    folder.mkdir(exist_ok=True)
    made = {"curves.png": curves(_histories(run)), "confusion.png": _confusion(run)}
    for name, figure in made.items():
        figure.savefig(folder / name, dpi=120)
    return [folder / name for name in made]


def curves(histories: dict[str, dict[str, NDArray[np.float64]]]) -> Figure:
    """One panel a metric, one line a fold (name -> columns); the training loss is drawn thin and dashed."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axis, (column, title) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for number, (fold, history) in enumerate(histories.items()):
            axis.plot(history["epoch"], history[column], color=f"C{number % 10}", label=fold)
            if column == "log_loss":
                axis.plot(history["epoch"], history["train_loss"], color=f"C{number % 10}", ls=":", lw=1)
        axis.set(title=title, xlabel="Epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    figure.axes[0].plot([], [], color="grey", ls=":", lw=1, label="training")
    figure.axes[0].legend(fontsize=8)
    return figure


def confusion_figure(
    counts: NDArray[np.int64], names: Sequence[str], title: str = "Confusion matrix, out of fold"
) -> Figure:
    """A confusion matrix `[C, C]` coloured by the share of each true class; counts are written where they fit."""
    size = min(max(4.5, 0.42 * len(names) + 2), 14)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axis = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, shrink=0.8, label="Share of the true class")
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


def _histories(run: Path) -> dict[str, dict[str, NDArray[np.float64]]]:
    found = {}
    for path in sorted(run.glob("fold_*/history.csv")):
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        found[path.parent.name.replace("_", " ")] = {key: np.array([float(r[key]) for r in rows]) for key in rows[0]}
    return found


def _confusion(run: Path) -> Figure:
    _, logits, targets = oof(run)
    return confusion_figure(metrics.confusion(logits, targets), list(class_names(run)))
