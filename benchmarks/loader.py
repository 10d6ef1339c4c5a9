"""How fast are images prepared for training? Our loader from files and from its cache against timm's, per CPU second.

    python -m benchmarks loader --json

Every arm decodes, takes a random crop of 8 to 100% resized to 224 pixels, flips, and changes brightness, contrast and
saturation of each image. The arms take turns of a second, `--repeats` each after one that warms up; a figure is the CPU
time of all of an arm's processes for an image, the best of its turns. The peers run in a process of their own, with
memory as their users have it. Arms:

- `files`: `data.loading.loader.Loader` over the files.
- `processes`: the same in a worker process instead of a thread.
- `cached`: the same from the cache of `data.cache`, as it is from the second epoch on.
- `jpegs`: the same from the cache where raw pixels have no room.
- `timm`: timm's `create_loader` with its prefetcher, the default, and one worker process.
- `torchvision`: torchvision's v2 transforms on tensors decoded by torchvision, in torch's DataLoader.

Also wall time to the first batch, memory for 100 times the images, and how CPU time grows from 1 to 8 threads, beside
two processes of one thread each: these share nothing, so what they lose is the machine's (cores of one chip that are
not alone on it), and `of_processes` is what 8 threads keep of it.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from timm.data import create_dataset, create_loader

from benchmarks import common
from benchmarks.common import Peer, Result, comparison, option
from config import heap
from config.sections.data import Data
from data.augment.transforms import Act, Training
from data.cache import disk, store
from data.cache.images import Images, Source
from data.loading.loader import Loader
from data.loading.sampler import epoch_order
from models.card import Preprocessing

BATCH, SIZE = 64, 224
WORKERS = 1  # our threads, the others' processes, as is timm's default
JITTER, LEAST = 0.4, 0.08  # timm's defaults
_TURN = 1.0  # CPU seconds
Epoch = Callable[[int], Iterable[int]]  # the images of the epoch of that number, as the numbers of them in each batch


@comparison(
    "loader",
    common.PHOTOGRAPHS,
    option("--repeats", type=int, default=6, help="turns of each arm"),
)
def loader(arguments: argparse.Namespace, folder: Path) -> Result:
    """CPU milliseconds an image of each arm, the ratios to timm's, and what else the module says."""
    repeats = arguments.repeats
    paths = common.photographs(arguments.data, 0, folder / "images" / "class")
    raw, jpegs = caches(paths, folder)
    with Peer(Epochs, others, folder / "images") as peer:
        spent = turns(
            {
                "files": ours(paths, Images(0), WORKERS),
                "processes": ours(paths, Images(0), WORKERS, WORKERS),
                "cached": ours(paths, raw, WORKERS),
                "jpegs": ours(paths, jpegs, WORKERS),
                **{name: partial(peer, "epoch", name) for name in ("timm", "torchvision")},
            },
            repeats,
        )
    best = {name: min(values) for name, values in spent.items()}
    figures = {
        "cpu_ms": {name: round(value, 4) for name, value in best.items()},
        "spread": {name: common.spread(values) for name, values in spent.items()},
        **{f"ratio_{arm}": round(best["timm"] / best[arm], 2) for arm in ("files", "cached", "jpegs")},
        "ratio_torchvision": round(best["torchvision"] / best["files"], 2),
        "first_batch_s": round(first_batch(paths), 3),
        "threads": scaling(paths, raw, folder, repeats),
        "memory_mib": memory(paths),
    }
    return common.result(figures, repeats, "timm", "torchvision", "opencv-python-headless")


def turns(arms: dict[str, Epoch], repeats: int) -> dict[str, list[float]]:
    """CPU milliseconds an image in each arm's turns of a second or more."""

    def turn(epoch: Epoch) -> float:
        before, count, number = cpu_seconds(), 0, 0
        while (taken := cpu_seconds() - before) < _TURN or not count:
            number += 1
            count += sum(epoch(number))
        return 1000 * taken / count

    return common.in_turn({name: partial(turn, epoch) for name, epoch in arms.items()}, repeats)


def cpu_seconds() -> float:
    """CPU time of this process and, in hundredths, of its children that are alive."""
    children = psutil.Process().children(recursive=True)
    return time.process_time() + sum(sum(child.cpu_times()[:2]) for child in children)


def transform(preprocessing: Preprocessing) -> Training:
    """The same changes as timm's defaults make."""
    strength = JITTER / 0.6  # our brightness and contrast reach a factor of 1.6 at strength 1
    acts = {"hflip": Act(0.5), **{name: Act(1.0, strength) for name in ("brightness", "contrast", "saturation")}}
    return Training(preprocessing, acts, None, LEAST)


def opened(paths: list[Path], source: Source, workers: int = 0, processes: int = 0) -> Loader:
    """Our loader over a source of pixels."""
    change = transform(Preprocessing(size=SIZE))
    return Loader(paths, change, SIZE, BATCH, workers, images=source, processes=processes)


def ours(paths: list[Path], source: Source, workers: int, processes: int = 0) -> Epoch:
    """Epochs of our loader."""
    loader = opened(paths, source, workers, processes)

    def epoch(number: int) -> Iterator[int]:
        order = epoch_order(len(paths), 0, number)  # whole batches, as training takes them, and timm's loader
        for batch in loader.epoch(order[: len(order) // BATCH * BATCH], number):
            yield len(batch.index)

    return epoch


def caches(paths: list[Path], folder: Path) -> tuple[Source, Source]:
    """A cache with room for raw pixels, and one whose room is too little for them and enough for JPEGs."""
    room, sources = 1e12, []
    for name in ("raw", "jpeg"):
        sources.append(cache(paths, SIZE, folder, name, 0.9 * room / 1e9))
        room = sum(store.size(folder) for folder in disk.folders(folder / name))
    return sources[0], sources[1]


def cache(paths: list[Path], size: int, folder: Path, name: str, gb: float) -> Source:
    """The cache of decoded images in `folder/name`, with room for so many GB, filled."""
    data = Data(root=folder, cache_gb=gb, cache_dir=folder / name)
    with contextlib.redirect_stdout(sys.stderr):
        return disk.sources(data, Preprocessing(size=size), paths, Images(0), lambda: False).train


class Epochs:
    """Arms in a process of their own, for `Peer`: those that `make` returns, by name."""

    def __init__(self, make: Callable[..., dict[str, Epoch]], *arguments: object):
        self._arms = make(*arguments)

    def epoch(self, name: str, number: int) -> list[int]:
        """The numbers of images in the batches of an epoch."""
        return list(self._arms[name](number))


def others(root: Path) -> dict[str, Epoch]:
    """The other libraries' loaders over the same files."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    def epochs(loader: Any) -> Epoch:
        return lambda _: (len(images) for images, _ in loader)

    return {"timm": epochs(timms(root, WORKERS)), "torchvision": epochs(torchvisions(root))}


def single(paths: list[Path], folder: Path) -> dict[str, Epoch]:
    """One thread over the files and over the cache that lies there already."""
    heap.retain_freed_memory()
    return {"files": ours(paths, Images(0), 1), "cached": ours(paths, caches(paths, folder)[0], 1)}


def timms(root: Path, workers: int, **other: Any) -> Any:
    """timm's training loader over the class folders in `root`, its prefetcher on the CPU; `other` changes arguments."""
    arguments: dict[str, Any] = {"input_size": (3, SIZE, SIZE), "batch_size": BATCH, "device": torch.device("cpu")}
    arguments |= {"is_training": True, "scale": (LEAST, 1.0), "hflip": 0.5, "color_jitter": JITTER}
    arguments |= {"num_workers": workers, "persistent_workers": workers > 0}
    return create_loader(create_dataset("", root), **arguments | other)


def torchvisions(root: Path) -> Any:
    """torchvision's v2 transforms, in torch's DataLoader, to uint8 as ours."""
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    change = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=(LEAST, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(JITTER, JITTER, JITTER),
        ]
    )
    dataset = ImageFolder(str(root), change, loader=partial(decode_image, mode=ImageReadMode.RGB))
    return torch.utils.data.DataLoader(
        dataset, BATCH, shuffle=True, num_workers=WORKERS, drop_last=True, persistent_workers=True
    )


def first_batch(paths: list[Path]) -> float:
    """Seconds by the clock from a new loader to its first batch, threads and all."""
    begun = time.perf_counter()
    with contextlib.closing(opened(paths, Images(0)).epoch(np.arange(len(paths)))) as batches:
        next(batches)
        return time.perf_counter() - begun


def scaling(paths: list[Path], raw: Source, folder: Path, repeats: int) -> dict[str, dict[str, float]]:
    """How much of one thread's speed per CPU second is left with 2, 4 and 8 threads, and with two processes, from files
    and from the cache."""
    figures = {}
    with Peer(Epochs, single, paths, folder) as first, Peer(Epochs, single, paths, folder) as second:
        for name, source in (("files", Images(0)), ("cached", raw)):

            def both(number: int, name: str = name) -> list[int]:
                return [count for counts in common.together("epoch", (first, second), name, number) for count in counts]

            arms = {str(threads): ours(paths, source, threads) for threads in (1, 2, 4, 8)} | {"processes": both}
            best = {arm: min(values) for arm, values in turns(arms, repeats).items()}
            figures[name] = {arm: round(best["1"] / value, 3) for arm, value in best.items()}
            figures[name]["of_processes"] = round(best["processes"] / best["8"], 3)
    return figures


def memory(paths: list[Path]) -> dict[str, float]:
    """Resident memory after the first batches of the images and of 100 times as many, MiB."""
    mib = {}
    for name, times in (("once", 1), ("hundred", 100)):
        many = opened(paths * times, Images(0), WORKERS)
        with contextlib.closing(many.epoch(np.arange(len(many.paths)))) as batches:
            for _ in zip(range(5), batches, strict=False):
                pass
        mib[name] = round(psutil.Process().memory_info().rss / 2**20, 1)
    return mib
