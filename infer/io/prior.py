"""The class prior: the prediction of an image that cannot be read.

It is the share of each class among the training images, from the first card that holds it, since all members of an
ensemble know the same classes. Where no card does, all classes are equally likely. Every class counts
one image more than it has, so that none has probability 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.postprocess import Postprocess
from models.card import Card


@dataclass(frozen=True, eq=False)
class Prior:
    """`probabilities` float32 `[C]`, their sum one, and their `source`, in words."""

    probabilities: NDArray[np.float32]
    source: str

    @property
    def text(self) -> str:
        """Its name and source, for a warning."""
        return f"the class prior ({self.source})"

    def fill(self, probabilities: NDArray[np.float32], rows: Collection[int]) -> None:
        """Put the prior into these rows of float32 `[N, C]`."""
        probabilities[sorted(rows)] = self.probabilities

    def labels(
        self, finish: Postprocess, probabilities: NDArray[np.float32], rows: Collection[int]
    ) -> NDArray[np.int64]:
        """int64 `[N]`: the class of each row; of `rows` the likeliest of the prior, whatever multipliers say."""
        labels = finish.labels(probabilities)
        labels[sorted(rows)] = finish.likeliest(self.probabilities)
        return labels


def of_cards(cards: Sequence[Card]) -> Prior:
    """The prior of members with these cards, all of the same classes."""
    classes = len(cards[0].class_names)
    counts = next((card.class_counts for card in cards if card.class_counts), None)
    if counts is None:
        return Prior(np.full(classes, 1 / classes, dtype=np.float32), "all classes alike")
    smoothed = np.array(counts, dtype=np.float64) + 1
    return Prior((smoothed / smoothed.sum()).astype(np.float32), "the classes' shares of the training images")


def warning(errors: Mapping[int, str], count: int, content: str) -> str:
    """A line that names the first of `count` images that could not be read and says what their rows hold."""
    rows = f"the rows of {len(errors)} of {count} images hold" if len(errors) > 1 else "its row holds"
    return f"the first unreadable image: {errors[min(errors)]}; {rows} {content}"
