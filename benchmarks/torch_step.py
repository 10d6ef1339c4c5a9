"""How fast does torch train? Our loop against the bare step and against the loop of timm's train.py, in one run.

    python -m benchmarks.torch_step --json                        # small networks on the CPU, synthetic data
    python -m benchmarks.torch_step --data ../shared/data/photos.tar

Arms, in turn `--repeats` times, best of each, in trained images a second (on the CPU: a second of CPU time); a turn is
`--updates` updates:

- `bare`: the engine's update on tensors that are on the device already, enqueued one after another, nothing read. -
`loop`: `training.loop.trainer.Trainer` with the same batch of uint8 pixels from the host for every update; checkpoints,
whose
  cadence is the user's, are left out.
- `timm`: the loop of timm's train.py with a normalised batch that is on the device: create_model, create_optimizer_v2
  (fused), channels_last, and the loss read each update; in a process of its own, with memory as its users have it.

With `--data` also the same loops over JPEG files: `loop files`, `loop cached` (from the cache of decoded images) and
`timm files` (create_loader with its prefetcher), each with random crops, flips and colour jitter on `--workers` cores.

`loop_over_bare` is seconds over seconds (1.00: the loop costs nothing), `ratio_timm_*` our images a second over
timm's. `tflops` are the network's own operations, forward and backward, that the loop does in a second. On a GPU run
`benchmarks.gpu`. Results: docs/engineering/speed_torch.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from backends.contract import LossSpec, SessionConfig
from backends.torch import model as networks
from backends.torch import session, step
from benchmarks import common
from benchmarks.common import photographs
from benchmarks.peer import Peer
from benchmarks.timm_train import Timm
from benchmarks.torch_cases import CLASSES, LEAST, SMALL, Case, forward_operations
from config import heap, load
from config.schema import Settings
from config.sections.data import Data
from data.augment import transforms
from data.cache import disk
from data.cache.images import Images, Source
from data.cores import cores
from data.loading.loader import Loaded, Loader
from models import registry
from models.card import Card
from models.registry import ModelSpec
from training.loop import trainer
from training.loop.fold_data import FoldData
from training.loop.state import Callbacks
from training.policy import optimizer
from training.policy.resizing import ResizeStage

Arm = Callable[[], float]  # a turn of it: trained images a second


class Synthetic:
    """A loader of one and the same batch, as `data.loading.loader.Loader` gives them."""

    bad: dict[Path, str] = {}  # noqa: RUF012 - never written to

    def __init__(self, case: Case):
        self.batch_size, self.paths = case.batch, [Path("synthetic")]
        draw = np.random.default_rng(0)
        self.images = draw.integers(0, 256, (case.batch, case.size, case.size, 3), dtype=np.uint8)

    def epoch(self, order: NDArray[np.int64], *_: Any, **__: Any) -> Iterator[Loaded]:
        """As many batches as the order has whole ones."""
        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
            index = order[start : start + self.batch_size]
            yield Loaded(self.images, index, np.ones(self.batch_size, np.float32))


class Marked:
    """A loader that notes when its epoch is asked for."""

    def __init__(self, loader: Any, clock: Callable[[], float]):
        self._loader, self._clock, self.at = loader, clock, 0.0
        self.batch_size, self.paths, self.bad = loader.batch_size, loader.paths, loader.bad

    def epoch(self, *arguments: Any, **named: Any) -> Iterator[Loaded]:
        """The loader's."""
        self.at = self._clock()
        yield from self._loader.epoch(*arguments, **named)


class Unsaved(trainer.Trainer):
    """The loop without its checkpoints, whose cadence is the user's."""

    def save(self, _before: Any = None) -> None:
        """Only what every save waits for."""
        self._drain()


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table or JSON."""
    parser = common.parser(__doc__)
    parser.add_argument("--data", type=Path, help="a tar of photographs, or a folder; without it data is synthetic")
    parser.add_argument("--images", type=int, default=0, help="files; 0 takes each photograph once")
    parser.add_argument("--device", default="cpu", choices=("cpu", "mps"))
    parser.add_argument("--models", nargs="+", help="names, of the table's or others")
    parser.add_argument("--size", type=int, help="pixels, in place of the table's")
    parser.add_argument("--batch", type=int, help="images, in place of the table's")
    parser.add_argument("--updates", type=int, default=6, help="updates of a turn")
    parser.add_argument("--repeats", type=int, default=4, help="turns of each arm")
    parser.add_argument("--workers", type=int, default=cores(), help="threads, timm's processes")
    parser.add_argument("--compile", choices=("default", "reduce-overhead", "max-autotune"))
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    heap.retain_freed_memory()  # as our commands do
    os.environ[session.DEVICE_VARIABLE] = arguments.device
    with tempfile.TemporaryDirectory() as place:
        paths = _files(arguments, Path(place)) if arguments.data else []
        rows = {case.name: measured(case, paths, arguments.repeats) for case in _cases(arguments, device)}
    threads = torch.get_num_threads()
    common.tell(arguments, {**_summary(rows), "threads": threads, "models": rows}, "torch", "timm")
    return 0


def measured(case: Case, paths: list[Path], repeats: int) -> dict[str, Any]:
    """The arms of one network, and their ratios."""
    settings, spec = _settings(case), registry.get(case.name, num_classes=CLASSES, image_size=case.size)
    optim = optimizer.spec(settings.optim, False, spec, _fresh(spec))
    loss = LossSpec()
    config = SessionConfig(optim=optim, loss=loss, precision="auto", compile=case.compile)
    opened = session.open(spec, None, config)
    synthetic = cast(Loader, Synthetic(case))
    with Peer(Timm, case, paths) as timm:
        arms: dict[str, Arm] = {
            "bare": lambda: bare(opened, case, case.updates),
            "loop": lambda: loop(opened, case, spec, synthetic, case.updates * case.batch),
            "timm": lambda: timm("on_synthetic", case.updates),
        }
        if paths:
            files, cached = (_loader(case, spec, paths, some) for some in (Images(0), _cache(case, spec, paths)))
            count = min(case.updates * case.batch, len(paths) // case.batch * case.batch)
            arms["loop files"] = lambda: loop(opened, case, spec, files, count)
            arms["loop cached"] = lambda: loop(opened, case, spec, cached, count)
            arms["timm files"] = lambda: timm("on_files")

        def warm() -> None:
            """An update of each side, as the first one after another arm pays for memory that the other gave back."""
            bare(opened, case, 1)
            timm("on_synthetic", 1)

        found = _in_turn(case.name, arms, warm, repeats)
    opened.close()
    return {"size": case.size, "batch": case.batch, **_figures(spec, found)}


def _in_turn(name: str, arms: dict[str, Arm], warm: Callable[[], None], repeats: int) -> dict[str, list[float]]:
    """Images a second of each arm's turns, after one that warms up and compiles."""
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(repeats + 1):
        for arm, run in arms.items():
            warm()
            rate = run()
            if turn:
                found[arm].append(rate)
        print(f"{name}: {'warm' if not turn else f'turn {turn} of {repeats}'}", file=sys.stderr)
    return found


def _figures(spec: ModelSpec, found: dict[str, list[float]]) -> dict[str, Any]:
    best = {arm: max(rates) for arm, rates in found.items()}
    figures: dict[str, Any] = {
        "images_per_second": {arm: float(f"{rate:.4g}") for arm, rate in best.items()},
        "spread": {arm: round(1 - min(rates) / max(rates), 3) for arm, rates in found.items()},
        "loop_over_bare": round(best["bare"] / best["loop"], 3),
        "ratio_timm_synthetic": round(best["loop"] / best["timm"], 3),
    }
    if "timm files" in best:
        figures["ratio_timm_files"] = round(best["loop files"] / best["timm files"], 3)
        figures["cached_over_bare"] = round(best["bare"] / best["loop cached"], 3)
    figures["tflops"] = float(f"{3 * forward_operations(spec) * best['loop'] / 1e12:.3g}")
    return figures


def bare(opened: session.Session, case: Case, updates: int) -> float:
    """Images a second of the update alone, its inputs on the device."""
    synthetic, device = Synthetic(case), case.device
    batch = [torch.from_numpy(synthetic.images).to(device), *(torch.from_numpy(a).to(device) for a in _answers(case))]
    trainer, prepare = opened._context, opened._input
    step.set_mode(trainer, False)
    opened._set = None  # the session is to set the mode again
    rates = step.Rates(1e-4, 0.05, 0.0, 1.0)
    start = case.clock()
    for _ in range(updates):
        step.train_step(trainer, prepare, batch, None, rates, False)
    return updates * case.batch / (case.clock() - start)


def loop(opened: session.Session, case: Case, spec: ModelSpec, train: Loader, count: int) -> float:
    """Images a second of an epoch of `Trainer` over `count` images, until the last update is read."""
    began, ended = Marked(train, case.clock), Marked(Synthetic(case), case.clock)
    labels = np.arange(count) % CLASSES
    data = FoldData(
        stages=(ResizeStage(1, case.size, case.batch),),
        train=(cast(Loader, began),),
        train_labels=labels,
        train_targets=np.eye(CLASSES, dtype=np.float32)[labels],
        train_weights=np.ones(count, np.float32),
        valid=cast(Loader, ended),
        valid_labels=labels[: case.batch],
        valid_ids=[str(i) for i in range(case.batch)],
        raise_to={},
    )
    card = Card(case.name, tuple(map(str, range(CLASSES))), spec.preprocessing, {}, "torch")
    with tempfile.TemporaryDirectory() as folder:
        Unsaved(opened, data, _settings(case), card, Path(folder), Callbacks()).run()
    return count / (ended.at - began.at)


def _fresh(spec: ModelSpec) -> dict[str, NDArray[np.float32]]:
    return networks.to_arrays(networks.canonical_tensors(networks.build(spec)))


def _loader(case: Case, spec: ModelSpec, paths: list[Path], source: Source) -> Loader:
    transform = transforms.by_epoch(_settings(case).augment, replace(spec.preprocessing, size=case.size), 1)
    return Loader(paths, transform, case.size, case.batch, case.workers, 0, source)


def _cache(case: Case, spec: ModelSpec, paths: list[Path]) -> Source:
    """The cache of decoded images, beside the files."""
    place = paths[0].parent.parent / f"cache_{case.size}"
    data, prep = Data(root=place, cache_gb=1000.0, cache_dir=place), replace(spec.preprocessing, size=case.size)
    with contextlib.redirect_stdout(sys.stderr):
        return disk.sources(data, prep, paths, Images(0), lambda: False).train


def _answers(case: Case) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return np.eye(CLASSES, dtype=np.float32)[np.arange(case.batch) % CLASSES], np.ones(case.batch, np.float32)


def _settings(case: Case) -> Settings:
    """Our side's settings."""
    words = f"--data.root synthetic --model {case.name} --data.image_size {case.size} --train.epochs 1"
    words += f" --train.batch_size {case.batch} --optim.lr 1e-4 --schedule.warmup_epochs 0"
    words += f" --checkpoint.every_minutes 0 --data.workers {case.workers} --augment.level none"
    words += f" --augment.min_scale {LEAST}"
    ops = ["--augment.ops", "{brightness: true, contrast: true, saturation: true}"]
    return load.parse([*words.split(), *ops], prog="benchmark")


def _cases(arguments: argparse.Namespace, device: torch.device) -> list[Case]:
    known = {name: (size, batch) for name, size, batch in SMALL}
    found = []
    for name in arguments.models or known:
        size, batch = known.get(name, (224, 32))
        size, batch = arguments.size or size, arguments.batch or batch
        compile = arguments.compile or False
        found.append(Case(name, size, batch, arguments.updates, arguments.workers, compile, device))
    return found


def _files(arguments: argparse.Namespace, place: Path) -> list[Path]:
    return sorted(photographs(arguments.data, arguments.images, place / "images" / "class").iterdir())


def _summary(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The geometric means over the networks."""
    names = ("loop_over_bare", "ratio_timm_synthetic", "ratio_timm_files", "cached_over_bare")
    there = [name for name in names if all(name in row for row in rows.values())]
    return {name: round(statistics.geometric_mean(row[name] for row in rows.values()), 3) for name in there}


if __name__ == "__main__":
    sys.exit(main())
