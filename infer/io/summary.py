"""A summary of predictions as text for a terminal: the class distribution and the confidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from config.text import counted, plain

_SHOWN_CLASSES = 20
_SHOWN_IMAGES = 5
UNSURE = 0.5


def text(
    probabilities: NDArray[np.float32],
    class_names: Sequence[str],
    ids: Sequence[str],
    *,
    labels: NDArray[np.int64] | None = None,
) -> str:
    """The class distribution and the confidence of `probabilities` `[N, C]`, several lines.

    `labels` `[N]` are the chosen classes where they are not the most probable ones.
    """
    return f"{distribution(probabilities, class_names, labels)}\n\n{confidence(probabilities, ids)}"


def distribution(
    probabilities: NDArray[np.float32], class_names: Sequence[str], labels: NDArray[np.int64] | None = None
) -> str:
    """A table of classes: how often each is predicted, and its mean probability; the most frequent where many."""
    chosen = probabilities.argmax(axis=1) if labels is None else labels
    counts = np.bincount(chosen, minlength=len(class_names))
    means = probabilities.mean(axis=0)
    many = len(class_names) > _SHOWN_CLASSES
    order = np.argsort(-counts, kind="stable")[:_SHOWN_CLASSES] if many else np.arange(len(class_names))
    shown = {c: plain(class_names[c]) for c in order}
    width = max(5, *map(len, shown.values()))
    lines = [f"{'class':<{width}} {'images':>8} {'share':>7} {'mean p':>7}"]
    lines += [
        f"{shown[c]:<{width}} {counts[c]:>8} {counts[c] / len(probabilities):>7.1%} {means[c]:>7.3f}" for c in order
    ]
    if many:
        lines.append(f"... and {counted(len(class_names) - _SHOWN_CLASSES, 'more class')}")
    never = int((counts == 0).sum())
    return "\n".join([*lines, f"{never} of {len(class_names)} classes are never predicted"] if never else lines)


def confidence(probabilities: NDArray[np.float32], ids: Sequence[str]) -> str:
    """Mean top-1 probability, the share of images under 0.5, and the most uncertain images, least sure first."""
    top = probabilities.max(axis=1)
    least = np.argsort(top, kind="stable")[:_SHOWN_IMAGES]
    unsure = ", ".join(f"{ids[i]} ({top[i]:.3f})" for i in least)
    return (
        f"confidence: mean top-1 probability {top.mean():.3f}; "
        f"{(top < UNSURE).mean():.1%} of the images are under {UNSURE}\nmost uncertain: {unsure}"
    )
