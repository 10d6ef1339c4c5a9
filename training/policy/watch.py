"""What is said about a run's course: nothing here changes it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

_WINDOW = 4


def overfitting(history: Sequence[dict[str, float]]) -> bool:
    """Whether, over the last `_WINDOW` epochs, the validation loss rose each time while the training loss fell."""
    recent = history[-_WINDOW:]
    if len(recent) < _WINDOW:
        return False
    return all(b["log_loss"] > a["log_loss"] and b["train_loss"] < a["train_loss"] for a, b in pairwise(recent))
