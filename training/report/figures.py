"""The numbers behind the page's figures: curves, confusion, classes, reliability, class distributions. No HTML here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support

from ensemble.calibration import scaling
from training.run import results

_PANELS = (
    ("Loss", ("log_loss", "train_loss")),
    ("Macro-F1", ("macro_f1",)),
    ("Accuracy", ("accuracy",)),
    ("Learning rate", ("lr",)),
    ("Images a second", ("images_per_second",)),
)
_VALIDATION = ("log_loss", "macro_f1", "accuracy")
_BINS = 15


def curves(run: Path) -> list[dict[str, Any]]:
    """One panel a metric, one line a fold over the epochs; the training loss is dashed. Numbers not finite are None.

    `best` is the fold's best epoch, so far where it still trains, in the panels of what is validated.
    """
    panels, histories = [], []
    for path in results.fold_files(run, "history.csv"):
        best = [int(row["epoch"]) for row in results.epochs(path.parent) if row.get("best")]
        fold = path.parent.name.replace("_", " ")
        histories.append((fold, results.history(path.parent), best[-1] if best else None))
    for title, columns in _PANELS:
        series = [
            {"name": f"{fold}{', training' if column == 'train_loss' else ''}", "colour": number, "x": epochs, "y": y}
            | {"dashed": column == "train_loss", "best": best_epoch if column in _VALIDATION else None}
            for number, (fold, rows, best_epoch) in enumerate(histories)
            for column in columns
            for epochs, y in [_line(rows, column)]
            if epochs
        ]
        if series:
            panels.append({"title": title, "series": series})
    return panels


def classes(counts: NDArray[np.int64], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row a class, from the confusion counts `[C, C]`: support, precision, recall, F1, and what it is taken for."""
    true, predicted = np.divmod(np.flatnonzero(counts), len(names))
    columns = precision_recall_fscore_support(
        true, predicted, sample_weight=counts[true, predicted], labels=np.arange(len(names)), zero_division=0
    )[:3]
    wrong = counts - np.diag(np.diag(counts))
    taken = [names[row.argmax()] if row.any() else "" for row in wrong]
    rows = zip(names, counts.sum(axis=1).tolist(), *(column.tolist() for column in columns), taken, strict=True)
    return [dict(zip(("name", "support", "precision", "recall", "f1", "taken_for"), row, strict=True)) for row in rows]


def reliability(logits: scaling.Rows, targets: NDArray[np.int64]) -> dict[str, Any]:
    """Confidence against accuracy in equal bins of top-1 confidence (Guo et al. 2017), with ECE, Brier and log loss.

    The Brier score is the sum over the classes, between 0 and 2.
    """
    correct = np.empty(len(targets), np.bool_)
    confidence, hits, squares = np.empty((3, len(targets)))
    for rows in scaling.blocks(*logits.shape):
        logs, labels = scaling.log_softmax(logits[rows]), targets[rows]
        probabilities = np.exp(logs)
        confidence[rows], correct[rows] = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        hits[rows], squares[rows] = logs[np.arange(len(labels)), labels], (probabilities**2).sum(axis=1)
    bins = scaling.reliability(confidence, correct, _BINS)
    shown = zip(bins.confidence.tolist(), bins.accuracy.tolist(), bins.images.tolist(), strict=True)
    return {
        "bins": [
            {"low": k / _BINS, "confidence": mean, "accuracy": share, "n": count}
            for k, (mean, share, count) in enumerate(shown)
            if count
        ],
        "width": 1 / _BINS,
        "ece": scaling.gap(bins),
        "brier": float((squares - 2 * np.exp(hits) + 1).mean()),
        "log_loss": float(-hits.mean()),
        "mean_confidence": float(confidence.mean()),
        "accuracy": float(correct.mean()),
    }


def distribution(
    names: tuple[str, ...], train: dict[str, int], predicted: NDArray[np.int64], test: dict[str, int]
) -> list[dict[str, Any]]:
    """A row a class: images and share in the labels, in the OOF predictions, and in those of the test images.

    `predicted` int64 `[N]` are OOF class numbers; `test` may be empty. `bars` are shares of the largest share.
    """
    answers = np.bincount(predicted, minlength=len(names))
    totals = [max(sum(train.values()), 1), max(len(predicted), 1), max(sum(test.values()), 1)]
    rows = []
    for name, answered in zip(names, answers.tolist(), strict=True):
        counts = (train.get(name, 0), answered, test.get(name, 0))
        shares = [count / total for count, total in zip(counts, totals, strict=True)]
        rows.append({"name": name, "counts": counts, "shares": shares})
    widest = max((share for row in rows for share in row["shares"]), default=0) or 1
    return [{**row, "bars": [share / widest for share in row["shares"]]} for row in rows]


def _line(rows: list[dict[str, str]], column: str) -> tuple[list[int], list[float | None]]:
    points = [row for row in rows if row.get(column)]
    values = [float(row[column]) for row in points]
    return [int(row["epoch"]) for row in points], [v if np.isfinite(v) else None for v in values]
