"""How fast is a training step? Our loop against the bare step, and against another library's loop, in one run.

    python -m benchmarks step --engine torch                        # small networks on the CPU, synthetic data
    python -m benchmarks step --engine torch --data ../shared/data/photos.tar
    python -m benchmarks step --engine mlx
    python -m benchmarks step --engine mlx --gpu                    # Metal or CUDA: 224 pixels, batches of 64

Arms, in turn, `--repeats` turns of `--updates` updates each after one that warms up, in seconds an update (CPU seconds
where the CPU computes, so that other programs do not count):

- `bare`: the engine's step alone, as fast as it goes; with torch its tensors are on the device already.
- `loop`: `training.loop.trainer` with the same batch from the host for every update; no checkpoints, whose cadence is
  the user's (`benchmarks checkpoint`).
- `timm`: the loop of timm's train.py with a normalised batch that is on the device (`step_torch.py`), in a
  process of its own, with memory as its users have it.
- `mlx_image`: mlx-image's own `Trainer.train_epoch`, which updates and measures accuracy; fp32, AdamW as ours.
- `loop_files`, `loop_cached`, `timm_files`, with torch and `--data`: the same from JPEG files and from the cache of
  decoded images, each with random crops, flips and colour jitter on all cores.

`loop_over_bare` is seconds over seconds (1.00: the loop costs nothing), `ratio_PEER` the peer's seconds over our loop's
(with MLX: over our bare step's), above 1 where we are faster: medians over the turns, and their geometric mean over the
networks. `tflops` are the network's own operations, forward and backward, that the loop does in a second. On a CUDA
device run `benchmarks gpu`. Results: docs/engineering/speed_torch.md and speed_mlx.md.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from backends.contract import Batch, Session, StepHyperparams
from benchmarks import common
from benchmarks.common import Result, comparison, option
from config import load
from data.loading.loader import Loaded, Loader
from models.card import Card
from models.registry import ModelSpec
from training.loop import trainer
from training.loop.fold_data import FoldData
from training.loop.state import Callbacks
from training.policy.resizing import ResizeStage

CLASSES = 10
HYPERPARAMS = StepHyperparams(lr=1e-4, weight_decay=0.05, ema_decay=0.0, clip_norm=1.0)
Seconds = dict[str, list[float]]  # of an update, by arm and turn
GOAL = 1.03  # of the bare step's time, for the loop
PACKAGES = {"torch": ("torch", "timm"), "mlx": ("mlx", "mlx-image")}
PEERS = {"torch": ("timm", "loop"), "mlx": ("mlx_image", "bare")}  # the arm of another library, and what it is over


@comparison(
    "step",
    option("--engine", choices=tuple(PACKAGES), default="torch"),
    option("--data", type=Path, help="torch: a tar of photographs, or a folder, to train from files too"),
    option("--images", type=int, default=0, help="files; 0 takes each photograph once"),
    option("--gpu", action="store_true", help="MLX: sizes for Metal or CUDA"),
    option("--models", nargs="+", help="names, of the engine's table or others"),
    option("--size", type=int, help="pixels, in place of the table's"),
    option("--batch", type=int, help="images, in place of the table's"),
    option("--updates", type=int, help="updates of a turn"),
    option("--repeats", type=int, default=5, help="turns of each arm"),
)
def step(arguments: argparse.Namespace, folder: Path) -> Result:
    """The ratios of each network; the aim is missed by those that `slower` names."""
    engine = arguments.engine
    figures = summary(importlib.import_module(f"benchmarks.steps.step_{engine}").run(arguments, folder), engine)
    return common.result(figures, arguments.repeats, *PACKAGES[engine], missed=figures["slower"])


def summary(networks: dict[str, dict[str, Any]], engine: str) -> dict[str, Any]:
    """Each network's ratios, the geometric means over the networks, and which are `slower`: in three quarters of at
    least three turns slower than the peer, or with a loop that costs more than 3%."""
    peer, ours = PEERS[engine]
    names = {"loop_over_bare": ("loop", "bare"), f"ratio_{peer}": (peer, ours)}
    names |= {"ratio_timm_files": ("timm_files", "loop_files"), "cached_over_bare": ("loop_cached", "bare")}
    rows, slower = {}, []
    for name, row in networks.items():
        seconds: Seconds = row["seconds"]
        ratios = {
            key: [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
            for key, (over, under) in names.items()
            if over in seconds
        }
        rows[name] = {
            **{key: value for key, value in row.items() if key not in ("seconds", "operations")},
            **{key: round(statistics.median(values), 3) for key, values in ratios.items()},
            "ms": {arm: common.rounded(1000 * statistics.median(each)) for arm, each in seconds.items()},
            "spread": {arm: common.spread(each) for arm, each in seconds.items()},
        }
        if operations := row.get("operations"):
            rows[name]["tflops"] = common.rounded(operations / statistics.median(seconds["loop"]) / 1e12)
        behind = [ratio < 1 for ratio in ratios[f"ratio_{peer}"]]
        dear = [ratio > GOAL for ratio in ratios["loop_over_bare"]]
        if any(len(turns) >= 3 and sum(turns) >= 0.75 * len(turns) for turns in (behind, dear)):
            slower.append(name)
    shared = [key for key in names if all(key in row for row in rows.values())]
    means = {key: round(statistics.geometric_mean(row[key] for row in rows.values()), 3) for key in shared}
    return {**means, "slower": ", ".join(slower), "models": rows}


def pixels(batch: int, size: int) -> NDArray[np.uint8]:
    """Random pixels, uint8 `[batch, size, size, 3]`."""
    return np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)


def batch_of(images: NDArray[np.uint8]) -> Batch:
    """The images with one class after the other."""
    targets = np.eye(CLASSES, dtype=np.float32)[np.arange(len(images)) % CLASSES]
    return Batch(images, targets, np.ones(len(images), np.float32))


def run_steps(session: Session, batches: Any, hyperparams: StepHyperparams = HYPERPARAMS) -> int:
    """The session's step over the batches, each read four later as the loop does; how many images that were."""
    pending: deque[Any] = deque()
    count = 0
    for batch in batches:
        pending.append(session.train_step(batch, None, hyperparams))
        count += len(batch.images)
        if len(pending) > trainer._IN_FLIGHT:
            session.read(pending.popleft())
    while pending:
        session.read(pending.popleft())
    return count


class Repeated:
    """In place of `data.loading.loader.Loader`: the same images for every batch, at once."""

    def __init__(self, images: NDArray[np.uint8]):
        self.batch_size, self.paths = len(images), [Path("synthetic")]
        self.bad: dict[Path, str] = {}
        self._images = images

    def epoch(self, order: NDArray[np.int64], *_: Any, **__: Any) -> Iterator[Loaded]:
        """As many batches as the order has whole ones."""
        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
            index = order[start : start + self.batch_size]
            yield Loaded(self._images, index, np.ones(self.batch_size, np.float32))


def loop_seconds(session: Session, spec: ModelSpec, train: Any, updates: int, clock: Callable[[], float]) -> float:
    """Seconds of an update in an epoch of `Trainer` over batches of `train`, until the last one is read."""
    batch, size, count = train.batch_size, spec.preprocessing.size, updates * train.batch_size
    words = f"--data.root synthetic --model {spec.name} --data.image_size {size} --train.epochs 1 --optim.lr 1e-4"
    words += f" --train.batch_size {batch} --schedule.warmup_epochs 0 --checkpoint.every_minutes 0"
    labels = np.arange(count) % CLASSES
    data = FoldData(
        stages=(ResizeStage(1, size, batch),),
        train=(cast(Loader, train),),
        train_labels=labels,
        train_targets=np.eye(CLASSES, dtype=np.float32)[labels],
        train_weights=np.ones(count, np.float32),
        valid=cast(Loader, train),
        valid_labels=labels[:batch],
        valid_ids=[str(i) for i in range(batch)],
        raise_to={},
    )
    card = Card(spec.name, tuple(map(str, range(CLASSES))), spec.preprocessing)
    settings = load.parse(words.split(), prog="benchmark")
    loop = trainer.Trainer(session, data, settings, card, Path("unsaved"), Callbacks())
    return common.seconds(loop._train_epoch, clock) / updates
