"""What a trained model says about labels: likely errors by confident learning, and classes that it mixes up.

The probabilities must be out of fold, that is from a model that was not trained on the image. Method: Northcutt, Jiang
and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.audit.findings import Finding

_SURE = 0.8  # probability from which the model's label is proposed
_PAIRS, _LEAST_PAIR = 10, 3
_ALIKE, _LEAST_ALIKE = 0.65, 10  # of two aliases: largest share of images told apart, fewest images of each class


def errors(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of the images whose labels are likely wrong, the likeliest first.

    `probabilities` `[N, C]` are out of fold, `labels` int64 `[N]`. The confident joint, scaled to the sizes of the
    classes (equation 3), says how many images labelled i belong to j; those of the largest margin p(j) - p(i) are
    taken (pruning by noise rate, section 3.2), save where the label is the model's own answer.
    """
    count, confident = probabilities.shape[1], suggested(probabilities, labels)
    sure, sizes = confident >= 0, np.bincount(labels, minlength=count)
    counts = taken_for(confident[sure], labels[sure], count)
    # The estimated number of images [C, C] by given and true class; a row sums to the images of its label.
    joint = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * sizes[:, None]
    wrong = np.zeros(len(labels), dtype=np.bool_)
    for i, j in np.argwhere(joint > 0).tolist():
        if i != j:
            members = np.flatnonzero(labels == i)
            margin = probabilities[members, j] - probabilities[members, i]
            wrong[members[np.argsort(-margin, kind="stable")[: round(joint[i, j])]]] = True
    suspects = np.flatnonzero(wrong & (probabilities.argmax(axis=1) != labels))
    confidence = probabilities[suspects, labels[suspects]]
    return suspects[np.argsort(confidence - probabilities[suspects].max(axis=1), kind="stable")]


def suggested(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The column of the confident joint for each image, int64 `[N]`; -1 where the model is not confident of any class.

    A class's threshold is the mean probability that it gets over the images labelled with it.
    """
    count = probabilities.shape[1]
    threshold = np.full(count, np.inf)
    for label in np.unique(labels).tolist():
        threshold[label] = probabilities[labels == label, label].mean()
    confident = np.where(probabilities >= threshold, probabilities, -1.0)
    return np.where((confident >= 0).any(axis=1), confident.argmax(axis=1), -1)


def find(
    ids: Sequence[str], probabilities: NDArray[np.floating], labels: NDArray[np.int64], names: Sequence[str]
) -> list[Finding]:
    """Likely label errors, the pairs of classes most confused, and classes that may be aliases of each other."""
    findings = []
    for i in errors(probabilities, labels).tolist():
        label, best = labels[i], probabilities[i].argmax()
        model = f"the model says {names[best]} ({probabilities[i, best]:.2f})"
        text = f"labelled {names[label]} ({probabilities[i, label]:.2f}), {model}"
        decision = ("relabel", names[best]) if probabilities[i, best] >= _SURE else ("", "")
        findings.append(Finding("label_error", text, ids[i], "train", names[label], (), *decision))
    return findings + confused(probabilities, labels, names)


def confused(probabilities: NDArray[np.floating], labels: NDArray[np.int64], names: Sequence[str]) -> list[Finding]:
    """The pairs of classes most often taken for each other, and those that the model can hardly tell apart."""
    matrix = taken_for(probabilities.argmax(axis=1), labels, len(names))
    mixed = np.triu(matrix + matrix.T, 1)
    findings = []
    for a, b in most_confused(matrix)[:_PAIRS]:
        if mixed[a, b] < _LEAST_PAIR:
            break
        text = f"{matrix[a, b]} of {matrix[a].sum()} {names[a]} taken for {names[b]}"
        text += f", {matrix[b, a]} of {matrix[b].sum()} the other way round"
        findings.append(Finding("confused", text, split="train", target=names[a]))
    between = np.diag(matrix)[:, None] + np.diag(matrix)[None] + mixed
    apart = 1 - mixed / np.maximum(between, 1)
    sizes = np.minimum(matrix.sum(axis=1)[:, None], matrix.sum(axis=1)[None])
    for a, b in np.argwhere((apart <= _ALIKE) & (mixed >= _LEAST_PAIR) & (sizes >= _LEAST_ALIKE)).tolist():
        text = f"the model tells {names[a]} from {names[b]} in only {100 * apart[a, b]:.0f}% of their images"
        text += "; if they are one class, relabel one of them"
        findings.append(Finding("alias", text, split="train", target=names[a]))
    return findings


def taken_for(predicted: NDArray[np.int64], labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """int64 `[C, C]`: how many images of a class (row) are taken for another (column)."""
    return np.asarray(np.bincount(labels * count + predicted, minlength=count**2).reshape(count, count))


def most_confused(matrix: NDArray[np.int64]) -> list[tuple[int, int]]:
    """The pairs of classes of which one is ever taken for the other, most often first."""
    mixed = np.triu(matrix + matrix.T, 1)
    order = np.argsort(-mixed, axis=None, kind="stable")[: np.count_nonzero(mixed)]
    return [divmod(cell, len(matrix)) for cell in order.tolist()]
