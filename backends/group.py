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

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The rows of all ranks, one rank after another: `[n, ...]` of each (n may differ) to `[sum of n, ...]`."""

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value`, a tree of plain Python values and NumPy arrays; what the others pass is not used."""


class Alone:
    """The only process."""

    rank = 0
    world_size = 1

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The rows themselves."""
        return rows

    def broadcast(self, value: Any) -> Any:
        """The value itself."""
        return value


ALONE = Alone()
