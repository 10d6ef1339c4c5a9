"""What the devices of several processes exchange in an update: gradients, losses and running statistics, added up in
few large messages, and for Mixup and CutMix the images. Each process has a copy of the network, equal to the bit.

What the processes say on the host stands in `group`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mlx.core as mx

from backends.group import ALONE
from backends.group import Group as AnyGroup
from backends.mlx.distributed.group import Group
from backends.mlx.model import Arrays

_BUCKET = 32 << 20  # bytes of a message: few, and the first travel while the last gradients are computed


class Replicas:
    """The copies of a network in the processes of a group. Alone nothing is exchanged."""

    def __init__(self, group: AnyGroup = ALONE):
        self._rank, self.count = group.rank, group.world_size
        self._group = group if isinstance(group, Group) else None

    def mine(self, rows: mx.array) -> mx.array:
        """This process's of the whole batch's rows."""
        if self.count == 1:
            return rows
        each = len(rows) // self.count
        return rows[self._rank * each : (self._rank + 1) * each]

    def gather(self, rows: mx.array) -> mx.array:
        """The whole batch's rows, of those of each process."""
        return rows if self._group is None else mx.distributed.all_gather(rows, group=self._group.group)

    def reduce(self, sums: dict[str, Any], losses: mx.array, moved: bool) -> tuple[dict[str, Any], mx.array]:
        """`step.Sums` over all processes and the whole batch's losses, after the last part of a batch; the running
        statistics, where an update has `moved` them, become their mean."""
        if self._group is None:
            return sums, losses
        each = len(losses)
        # Others have zeros there, so that the losses travel with the gradients.
        placed = mx.pad(losses, (self._rank * each, (self.count - 1 - self._rank) * each))
        buffers = sums["buffers"] if moved else {}
        gradients = sums["gradients"]
        latest = [*reversed(gradients)]  # whose gradients are there first
        held = [sums["mean"], placed, *(gradients[name] for name in latest), *buffers.values()]
        mean, losses, *rest = self._summed(held)
        summed = dict(zip(latest, rest, strict=False))
        return {
            "gradients": {name: summed[name] for name in gradients},
            "buffers": {**sums["buffers"], **self._mean(buffers, rest[len(latest) :])},
            "mean": mean,
        }, losses

    def average(self, arrays: Arrays) -> Arrays:
        """The mean of the arrays over all processes."""
        return arrays if self._group is None else self._mean(arrays, self._summed([*arrays.values()]))

    def wait(self, arrays: Any) -> None:
        """Wait for a tree of arrays that is read next; `GroupLost` where it needs a process that has ended. Alone the
        reader waits."""
        if self._group is not None:
            self._group.wait(arrays)

    def waiting(self) -> AbstractContextManager[None]:
        """Around an update, whose enqueuing waits while much is enqueued already."""
        return nullcontext() if self._group is None else self._group.waiting()

    def _mean(self, arrays: Arrays, summed: Sequence[mx.array]) -> Arrays:
        return {name: value / self.count for name, value in zip(arrays, summed, strict=True)}

    def _summed(self, arrays: Sequence[mx.array]) -> list[mx.array]:
        """The float32 sums over all processes."""
        sums: list[mx.array] = []
        before: list[mx.array] = []
        for bucket in _buckets(arrays):
            flat = mx.concatenate([array.reshape(-1).astype(mx.float32) for array in bucket])
            # One after the other, in the same order in all processes.
            flat = mx.depends([flat], before)[0] if before else flat
            before = [mx.distributed.all_sum(flat, group=self._group.group if self._group else None)]
            at = 0
            for array in bucket:
                sums.append(before[0][at : at + array.size].reshape(array.shape))
                at += array.size
        return sums


def _buckets(arrays: Sequence[mx.array]) -> list[list[mx.array]]:
    buckets: list[list[mx.array]] = [[]]
    size = 0
    for array in arrays:
        if size and size + 4 * array.size > _BUCKET:
            buckets.append([])
            size = 0
        buckets[-1].append(array)
        size += 4 * array.size
    return buckets
