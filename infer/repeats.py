"""Repeated folds answer each image several times out of fold: the answers become one, as an ensemble's would."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data import csvfile
from infer.calibration import log_softmax


class Answers(NamedTuple):
    """OOF answers: `ids` `[N]`, `logits` float32 `[N, C]`, `targets` int64 `[N]`."""

    ids: NDArray[np.str_]
    logits: NDArray[np.float32]
    targets: NDArray[np.int64]


def of_run(run: Path) -> bool:
    """Whether the folds of a run were drawn several times."""
    file = run / "folds.csv"
    return file.is_file() and "fold_2" in csvfile.header(file)


def merged(answers: Answers) -> Answers:
    """Each image once, in the order of its first answer: the logarithm of the mean of its probabilities.

    Logits of images that were answered once stay as they are.
    """
    _, first, place, counts = np.unique(answers.ids, return_index=True, return_inverse=True, return_counts=True)
    if len(counts) == len(answers.ids):
        return answers
    sums = np.zeros((len(counts), answers.logits.shape[1]))
    np.add.at(sums, place, np.exp(log_softmax(answers.logits)))
    means = np.log(np.maximum(sums / counts[:, None], np.finfo(np.float32).tiny))
    logits = np.where(counts[:, None] > 1, means, answers.logits[first]).astype(np.float32)
    order = np.argsort(first)
    return Answers(answers.ids[first[order]], logits[order], answers.targets[first[order]])
