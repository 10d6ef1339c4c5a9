"""The processes that train one model together, as the training loop sees them.

Gradients never pass here: an engine's step adds them up by itself. What passes is small and on the host.
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray


class Group(Protocol):
    """One process of `world_size`, which all call the same methods in the same order.

    A call raises `GroupLost` when a process has ended or does not answer within the group's time limit.
    """

    rank: int
    world_size: int

    def gather(self, rows: NDArray[Any], even: bool = False) -> NDArray[Any]:
        """The rows of all ranks, one rank after another: `[n, ...]` of each (n may differ) to `[sum of n, ...]`.

        With `even` n is the same on all, which needs one message and not two. Rows of a rank that has none may have any
        shape and dtype.
        """

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value`, a tree of plain Python values and NumPy arrays; what the others pass is not used."""

    def close(self) -> None:
        """Leave the group, after all is done."""


def train_purpose(group: Group) -> str:
    """What keys a process's dropout masks beside the seed and the call: each process draws its own."""
    return f"train {group.rank}" if group.rank else "train"


class Alone:
    """The only process."""

    rank = 0
    world_size = 1

    def gather(self, rows: NDArray[Any], even: bool = False) -> NDArray[Any]:
        """The rows themselves."""
        del even
        return rows

    def broadcast(self, value: Any) -> Any:
        """The value itself."""
        return value

    def close(self) -> None:
        """Nothing to leave."""


ALONE = Alone()
