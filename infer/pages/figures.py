"""The numbers behind figures that several pages have: confusion, bins of confidence, histograms. No HTML here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_PAIRS = 20
AS_TABLE = 30  # classes that a confusion matrix can have and still be read as a table


def matrix(counts: NDArray[np.int64], names: tuple[str, ...]) -> dict[str, Any]:
    """The confusion counts: all of them as rows for a table where that can be read, else those above 0 as triples."""
    if len(names) <= AS_TABLE:
        total = np.maximum(counts.sum(axis=1), 1)
        rows = [
            {"name": name, "cells": [{"n": n, "share": n / row_total} for n in row]}
            for name, row, row_total in zip(names, counts.tolist(), total.tolist(), strict=True)
        ]
        return {"names": names, "rows": rows, "cells": []}
    cells = [[int(i), int(j), int(counts[i, j])] for i, j in np.argwhere(counts)]
    return {"names": names, "rows": [], "cells": cells}


def pairs(counts: NDArray[np.int64], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The most frequent confusions, most images first: true class, answered class, images, share of the true class."""
    wrong = counts - np.diag(np.diag(counts))
    total = counts.sum(axis=1)
    order = [divmod(int(cell), len(names)) for cell in np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]]
    return [
        {"true": names[i], "said": names[j], "n": int(wrong[i, j]), "share": float(wrong[i, j] / total[i])}
        for i, j in order
        if wrong[i, j]
    ]


def bins(columns: dict[str, list[float | None]]) -> dict[str, Any]:
    """Columns of equal bins of confidence as rows; empty bins are left out."""
    width = 1 / len(columns["images"])
    rows = zip(columns["images"], columns["confidence"], columns["accuracy"], strict=True)
    return {
        "width": width,
        "bins": [
            {"low": k * width, "n": int(n), "confidence": confidence, "accuracy": accuracy}
            for k, (n, confidence, accuracy) in enumerate(rows)
            if n and confidence is not None and accuracy is not None
        ],
    }


def bars(histogram: dict[str, list[float]]) -> list[dict[str, float]]:
    """Right and wrong predictions of each bar, and both as shares of the tallest."""
    most = max((right + wrong for right, wrong in zip(histogram["right"], histogram["wrong"], strict=True)), default=0)
    rows = zip(histogram["edges"], histogram["edges"][1:], histogram["right"], histogram["wrong"], strict=False)
    return [
        {"low": low, "high": high, "right": right, "wrong": wrong, "r": right / (most or 1), "w": wrong / (most or 1)}
        for low, high, right, wrong in rows
    ]
