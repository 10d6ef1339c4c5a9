"""Answers to validation images, and the file that keeps them. How they are scored is `metrics`."""

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
    # As many on each, since networks that are spread over processes are evaluated by all at a time.
    order = np.minimum(np.arange(-(-count // group.world_size)) + (mine[0] if len(mine) else count), count - 1)
    found = group.gather(together(group, lambda: _logits(session, loader, order, which))[: len(mine)])
    if not answered(found).any():
        raise DataError(f"none of the {count} validation images can be read; replace them, or change folds")
    return found


def _logits(session: Session, loader: Loader, order: NDArray[np.int64], which: Which) -> NDArray[np.float32]:
    """The logits of the images of an order of rising numbers."""
    found: NDArray[np.float32] | None = None
    for loaded, begun in _begun(session, loader, order, which):
        logits, kept = begun(), loaded.weight > 0
        if found is None:
            found = np.full((len(order), logits.shape[1]), -np.inf, np.float32)
        found[loaded.index[kept] - order[0]] = logits[kept]
    return np.zeros((0, 0), np.float32) if found is None else found


def _begun(
    session: Session, loader: Loader, order: NDArray[np.int64], which: Which
) -> Iterator[tuple[Loaded, Callable[[], NDArray[np.float32]]]]:
    """Each batch with its logits on their way, the next batch enqueued behind it."""
    ahead: deque[tuple[Loaded, Callable[[], NDArray[np.float32]]]] = deque()
    for loaded in loader.epoch(order, epoch=0):
        ahead.append((loaded, session.begin_logits(loaded.images, which)))
        if len(ahead) > _AHEAD:
            yield ahead.popleft()
    yield from ahead


def answered(logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """bool `[N]`: the rows of images that could be read."""
    return np.asarray(~np.isneginf(logits).all(axis=1))


def corrupted_scores(
    session: Session, loader: Loader | None, labels: NDArray[np.int64], which: Which = "live"
) -> dict[str, float]:
    """The scores on damaged validation images, as `corrupted_NAME`; none where there is no loader of them."""
    if loader is None:
        return {}
    logits = evaluate(session, loader, len(labels), which)
    kept = answered(logits)
    return {f"corrupted_{name}": value for name, value in metrics.scores(logits[kept], labels[kept]).items()}


def deciding(row: dict[str, float], metric: str, share: float) -> float:
    """The score that picks the best epoch: the metric, `share` of it on damaged images."""
    return (1 - share) * row[metric] + share * row[f"corrupted_{metric}"] if share else row[metric]


def write_oof(folder: Path, ids: Sequence[str], logits: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    """`oof.npz` of a fold: ids, logits and targets of the validation images that could be read."""
    kept = answered(logits)
    with atomic_path(folder / "oof.npz") as unfinished, unfinished.open("wb") as file:
        np.savez(file, ids=np.array(ids)[kept], logits=logits[kept], targets=labels[kept])
