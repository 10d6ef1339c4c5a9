"""`training.loop.trainer` around a session, timed: one epoch, from its first batch until validation begins."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from backends.contract import Batch, Session, StepHyperparams
from config import load
from data.loading.loader import Loaded, Loader
from models.card import Card
from models.registry import ModelSpec
from training.loop import trainer
from training.loop.fold_data import FoldData
from training.loop.state import Callbacks
from training.policy.resizing import ResizeStage

CLASSES = 10
IN_FLIGHT = trainer._IN_FLIGHT
HYPERPARAMS = StepHyperparams(lr=1e-4, weight_decay=0.05, ema_decay=0.0, clip_norm=1.0)


def images(batch: int, size: int) -> NDArray[np.uint8]:
    """Random pixels, uint8 `[batch, size, size, 3]`."""
    return np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)


def batch_of(pixels: NDArray[np.uint8]) -> Batch:
    """The pixels with one class after the other."""
    targets = np.eye(CLASSES, dtype=np.float32)[np.arange(len(pixels)) % CLASSES]
    return Batch(pixels, targets, np.ones(len(pixels), np.float32))


class Repeated:
    """In place of `data.loading.loader.Loader`: the same images for every batch, at once."""

    def __init__(self, pixels: NDArray[np.uint8]):
        self.batch_size, self.paths = len(pixels), [Path("synthetic")]
        self.bad: dict[Path, str] = {}
        self._pixels = pixels

    def epoch(self, order: NDArray[np.int64], *_: Any, **__: Any) -> Iterator[Loaded]:
        """As many batches as the order has whole ones."""
        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
            index = order[start : start + self.batch_size]
            yield Loaded(self._pixels, index, np.ones(self.batch_size, np.float32))


class _Noted:
    """A loader that notes when its epoch is asked for."""

    def __init__(self, loader: Any, clock: Callable[[], float]):
        self._loader, self._clock, self.began = loader, clock, 0.0
        self.batch_size, self.paths, self.bad = loader.batch_size, loader.paths, loader.bad

    def epoch(self, *arguments: Any, **named: Any) -> Iterator[Loaded]:
        """The loader's."""
        self.began = self._clock()
        yield from self._loader.epoch(*arguments, **named)


class _Unsaved(trainer.Trainer):
    """The loop without its checkpoints."""

    def save(self, _before: Any = None) -> None:
        """Only what every save waits for."""
        self._drain()


def seconds(session: Session, spec: ModelSpec, train: Any, updates: int, clock: Callable[[], float]) -> float:
    """Seconds of an update in an epoch of `Trainer` over batches of `train`, until the last one is read."""
    batch, size, count = train.batch_size, spec.preprocessing.size, updates * train.batch_size
    words = f"--data.root synthetic --model {spec.name} --data.image_size {size} --train.epochs 1 --optim.lr 1e-4"
    words += f" --train.batch_size {batch} --schedule.warmup_epochs 0 --checkpoint.every_minutes 0"
    settings = load.parse(words.split(), prog="benchmark")
    began, ended = _Noted(train, clock), _Noted(Repeated(images(batch, size)), clock)
    labels = np.arange(count) % CLASSES
    data = FoldData(
        stages=(ResizeStage(1, size, batch),),
        train=(cast(Loader, began),),
        train_labels=labels,
        train_targets=np.eye(CLASSES, dtype=np.float32)[labels],
        train_weights=np.ones(count, np.float32),
        valid=cast(Loader, ended),
        valid_labels=labels[:batch],
        valid_ids=[str(i) for i in range(batch)],
        raise_to={},
    )
    card = Card(spec.name, tuple(map(str, range(CLASSES))), spec.preprocessing)
    with tempfile.TemporaryDirectory() as folder:
        _Unsaved(session, data, settings, card, Path(folder), Callbacks()).run()
    return (ended.began - began.began) / updates


def run_steps(session: Session, batches: Any, hyperparams: StepHyperparams = HYPERPARAMS) -> int:
    """The session's step over the batches, each read four later as the loop does; how many images that were."""
    pending: deque[Any] = deque()
    count = 0
    for batch in batches:
        pending.append(session.train_step(batch, None, hyperparams))
        count += len(batch.images)
        if len(pending) > IN_FLIGHT:
            session.read(pending.popleft())
    while pending:
        session.read(pending.popleft())
    return count
