"""The plots of a run: curves of loss, accuracy and F1, and its confusion matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from infer.pages.plots import confusion_figure
from training.loop import metrics
from training.run import results

_PANELS = (("log_loss", "Loss"), ("accuracy", "Accuracy"), ("macro_f1", "Macro-F1"))


def write(run: Path) -> list[Path]:
    """Write `plots/curves.png` and `plots/confusion.png` of a run folder; returns their paths."""
    folder = run / "plots"
    folder.mkdir(exist_ok=True)
    _, logits, targets = results.oof(run)
    confusion = confusion_figure(metrics.confusion(logits, targets), list(results.card(run).class_names))
    histories = {
        path.parent.name.replace("_", " "): {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}
        for path in sorted(run.glob("fold_*/history.csv"))
        for rows in [results.history(path.parent)]
    }
    plots = {"curves.png": curves(histories), "confusion.png": confusion}
    for name, figure in plots.items():
        figure.savefig(folder / name, dpi=120)
    return [folder / name for name in plots]


def curves(histories: dict[str, dict[str, NDArray[np.float64]]]) -> Figure:
    """One panel a metric, one line a fold (name -> columns); the training loss is drawn thin and dashed."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axis, (column, title) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for number, (fold, history) in enumerate(histories.items()):
            dot = "o" if len(history["epoch"]) == 1 else ""  # a line needs two epochs
            axis.plot(history["epoch"], history[column], color=f"C{number % 10}", marker=dot, label=fold)
            if column == "log_loss":
                thin = {"color": f"C{number % 10}", "ls": ":", "lw": 1, "marker": dot, "markersize": 3}
                axis.plot(history["epoch"], history["train_loss"], **thin)
        axis.set(title=title, xlabel="Epoch")
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(alpha=0.3)
    figure.axes[0].plot([], [], color="grey", ls=":", lw=1, label="training")
    figure.axes[0].legend(fontsize=8)
    return figure
