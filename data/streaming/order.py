"""The order of an epoch in which shards are read front to back, for any number of ranks.

As in WebDataset, shards are permuted and a shuffle buffer mixes the samples of neighbouring ones. As in MosaicML's
Streaming, a fixed number of streams decides the order, not the number of ranks (`num_canonical_nodes`), and no sample
waits in the buffer for longer than the buffer is large (`py1e`), so that its shard is not needed for long.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.rng import philox

Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StreamOrder:
    """`shard` int64 `[N]` numbers the shard of each sample; samples of a shard are numbered as they lie in it.

    Each of `streams` streams reads its own shards one after another through a shuffle buffer of its part of `buffer`
    samples. A batch is the concatenation of equal parts from all streams, so that a rank that takes consecutive rows of
    each batch reads the shards of its streams alone.
    """

    shard: Index
    streams: int
    buffer: int

    def __call__(self, drawn: Index, batch: int, seed: int, epoch: int) -> Index:
        """The samples `drawn`, in any order and any number of times each, in whole batches: int64
        `[len(drawn) // batch * batch]`, a pure function of the set of samples, the seed and the epoch.

        `batch` is a multiple of `streams`. What fills no batch is left out, as many samples of each stream.
        """
        shards = np.unique(self.shard)
        position = np.empty(shards[-1] + 1, np.int64)
        position[shards] = philox(seed, "shards", epoch).permutation(len(shards))
        reading = drawn[np.lexsort((drawn, position[self.shard[drawn]]))]
        ends = np.arange(self.streams + 1) * len(reading) // self.streams
        steps, rows = len(reading) // batch, batch // self.streams
        order = np.empty((steps, self.streams, rows), np.int64)
        for number in range(self.streams):
            stream = reading[ends[number] : ends[number + 1]]
            if number % 2:  # shards in reverse order, so that two streams that share a shard read it at the same time
                starts = np.flatnonzero(np.diff(self.shard[stream])) + 1
                stream = np.concatenate(np.split(stream, starts)[::-1])
            random = philox(seed, "shuffle buffer", epoch, number).random(len(stream))
            waits = max(1, self.buffer // self.streams) * random
            shuffled = stream[np.argsort(np.arange(len(stream)) + waits, kind="stable")]
            order[:, number] = shuffled[: steps * rows].reshape(steps, rows)
        return order.reshape(-1)
