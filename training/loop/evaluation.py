"""Logits of validation images, their scores, and the file that stores them. The metrics are those of `metrics`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.contract import Session, Which
from config.errors import DataError
from config.places import atomic_path
from data.loading.loader import Loaded, Loader
from training.distributed.ranks import together
from training.loop import metrics

_AHEAD = 2  # batches enqueued beside the one that is waited for


def evaluate(session: Session, loader: Loader, count: int, which: Which = "live") -> NDArray[np.float32]:
    """Logits float32 `[count, C]` of all images of a loader, in order; -inf for those that cannot be read.

    Each process of the session's group computes those of a part of the images.
    """
    group = session.group
    mine = np.array_split(np.arange(count), group.world_size)[group.rank]
    # The same number on each, since networks sharded over processes are evaluated by all together.
    order = np.minimum(np.arange(-(-count // group.world_size)) + (mine[0] if len(mine) else count), count - 1)
    logits = group.gather(together(group, lambda: _logits(session, loader, order, which))[: len(mine)])
    if not answered(logits).any():
        raise DataError(f"none of the {count} validation images can be read; replace them, or change folds")
    return logits


def _logits(session: Session, loader: Loader, order: NDArray[np.int64], which: Which) -> NDArray[np.float32]:
    """The logits of the images of `order`, whose numbers rise."""
    rows: NDArray[np.float32] | None = None
    for loaded, begun in _begun(session, loader, order, which):
        logits, readable = begun(), loaded.weight > 0
        if rows is None:
            rows = np.full((len(order), logits.shape[1]), -np.inf, np.float32)
        rows[loaded.index[readable] - order[0]] = logits[readable]
    return np.zeros((0, 0), np.float32) if rows is None else rows


def _begun(
    session: Session, loader: Loader, order: NDArray[np.int64], which: Which
) -> Iterator[tuple[Loaded, Callable[[], NDArray[np.float32]]]]:
    """Each batch with the function that waits for its logits, the next batches enqueued behind it."""
    ahead: deque[tuple[Loaded, Callable[[], NDArray[np.float32]]]] = deque()
    for loaded in loader.epoch(order, epoch=0):
        ahead.append((loaded, session.begin_logits(loaded.images, which)))
        if len(ahead) > _AHEAD:
            yield ahead.popleft()
    yield from ahead


def answered(logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """bool `[N]`: the rows of images that could be read."""
    return np.asarray(~np.isneginf(logits).all(axis=1))


def scores(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """The metrics of logits `[N, C]` against labels int64 `[N]`, without images that could not be read."""
    readable = answered(logits)
    return metrics.scores(logits[readable], labels[readable])


def write_oof(folder: Path, ids: Sequence[str], logits: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    """`oof.npz` of a fold: ids, logits and targets of the validation images that could be read."""
    readable = answered(logits)
    with atomic_path(folder / "oof.npz") as unfinished, unfinished.open("wb") as file:
        np.savez(file, ids=np.array(ids)[readable], logits=logits[readable], targets=labels[readable])
