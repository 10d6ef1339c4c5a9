"""The reliability diagram: accuracy against confidence before and after calibration, and the confidence histogram."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ensemble.analysis import Analysis

_BEFORE, _AFTER, _WRONG = "#b0b7c3", "#2563eb", "#dc2626"


def draw(path: Path, analysis: Analysis) -> None:
    """Write the picture as a PNG file."""
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 4.4), layout="constrained", dpi=110)
        left, right = figure.subplots(1, 2)
        _curves(left, analysis)
        _histogram(right, analysis)
        figure.savefig(path)


def _curves(axes: matplotlib.axes.Axes, analysis: Analysis) -> None:
    axes.plot([0, 1], [0, 1], color="#9ca3af", linewidth=1, linestyle="--", label="perfect")
    selected = "no calibration" if analysis.calibration == "none" else analysis.calibration
    after = next(score for score in analysis.after if score["name"] == selected)
    ece = {"before": analysis.before["ece"], "after": after["ece"]}
    for name, colour in (("before", _BEFORE), ("after", _AFTER)):
        bins = analysis.reliability[name]
        shown = [i for i, count in enumerate(bins["images"]) if count]
        x, y, sizes = (np.array([bins[key][i] for i in shown], float) for key in ("confidence", "accuracy", "images"))
        axes.plot(x, y, color=colour, linewidth=1.5)
        axes.scatter(
            x, y, s=12 + 120 * sizes / sizes.sum(), color=colour, label=f"{name}, ECE {ece[name]:.4f}", zorder=3
        )
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence (top-1 probability)", ylabel="accuracy")
    axes.set_title(f"Reliability, out of fold (calibration: {analysis.calibration})")
    axes.legend(frameon=False, loc="upper left")


def _histogram(axes: matplotlib.axes.Axes, analysis: Analysis) -> None:
    edges = np.array(analysis.histogram["edges"])
    right, wrong = np.array(analysis.histogram["right"]), np.array(analysis.histogram["wrong"])
    width = np.diff(edges)
    axes.bar(edges[:-1], right, width, align="edge", color=_AFTER, alpha=0.75, label=f"right ({int(right.sum())})")
    axes.bar(edges[:-1], wrong, width, right, align="edge", color=_WRONG, label=f"wrong ({int(wrong.sum())})")
    axes.set(
        xlim=(0, 1), xlabel="confidence (top-1 probability)", ylabel="images", title="Confidence after calibration"
    )
    axes.legend(frameon=False, loc="best")
