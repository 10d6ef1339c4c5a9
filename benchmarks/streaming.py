"""What streaming shards costs: the order of an epoch, the table in memory, a pass over HTTP, and what each rank reads.

    python -m benchmarks streaming --json

It serves shards of photographs from a child process on this machine, so that the transfer
takes its share of the same cores. Needs the extra `remote`.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from benchmarks import common
from benchmarks.common import Result, comparison
from config.sections.data import Data
from data import sources
from data.augment.transforms import EvalTransform
from data.cache.images import Images
from data.loading.loader import Loader
from data.streaming import shard_cache
from data.streaming.order import StreamOrder
from models.card import Preprocessing

SHARDS, IMAGES, PHOTOGRAPHS = 20, 400, 20
IMAGENET = 1_281_167


def _write(folder: Path) -> None:
    """Shards of 500 x 375 JPEGs of about 100 kB."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (PHOTOGRAPHS, 48, 64, 3), dtype=np.uint8)
    grain = rng.integers(0, 40, (375, 500, 3), dtype=np.uint8)
    pictures = [cv2.add(cv2.resize(image, (500, 375), interpolation=cv2.INTER_CUBIC), grain) for image in small]
    jpegs = [cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes() for picture in pictures]
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as opened:
            for i in range(IMAGES):
                for suffix, content in (("jpg", jpegs[i % PHOTOGRAPHS]), ("cls", str(i % 10).encode())):
                    member = tarfile.TarInfo(f"{shard:03d}{i:04d}.{suffix}")
                    member.size = len(content)
                    opened.addfile(member, io.BytesIO(content))


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    port = common.free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(2)
        try:
            yield f"http://127.0.0.1:{port}/{{000..{SHARDS - 1:03d}}}.tar"
        finally:
            process.terminate()


def _epoch(table: sources.Table, order: np.ndarray, limit: int) -> dict[str, int]:
    """Images a second, MB of shards on the disk and of this process at the most."""
    loader = Loader(table.paths, EvalTransform(Preprocessing(size=224)), 224, 64, images=Images(0), shard_bytes=limit)
    start, disk, memory = time.perf_counter(), 0, 0
    for number, _ in enumerate(loader.epoch(order)):
        if number % 10 == 0:
            disk = max(disk, sum(path.stat().st_size for path in shard_cache.folder().rglob("*.tar")))
            memory = max(memory, psutil.Process().memory_info().rss)
    rate = len(order) / (time.perf_counter() - start)
    return {"images_per_second": round(rate), "disk_mb": round(disk / 1e6), "memory_mb": round(memory / 1e6)}


@comparison("streaming")
def streaming(_arguments: argparse.Namespace, folder: Path) -> Result:
    """The order of ImageNet, then shards of synthetic photographs over HTTP and from the disk."""
    start = time.perf_counter()
    order = StreamOrder(np.arange(IMAGENET) // 1000, 8, 8192)(np.arange(IMAGENET), 1024, 0, 0)
    figures: dict[str, Any] = {"order_s": round(time.perf_counter() - start, 2)}  # of ImageNet in shards of 1,000
    for ranks in (1, 2, 4, 8):
        rows = order.reshape(-1, ranks, 1024 // ranks) // 1000
        read = [len(np.unique(rows[:, rank])) for rank in range(ranks)]
        figures[f"shards_of_1282_read_by_{ranks}_ranks"] = f"{min(read)} to {max(read)} each, {sum(read)} together"
    os.environ["TANDEM_CACHE"] = f"{folder}/cache"
    root = folder / "shards"
    root.mkdir()
    _write(root)
    size = sum(file.stat().st_size for file in root.iterdir())
    with _served(root) as url:
        data, start = Data(root=Path(url), streaming=True), time.perf_counter()
        table = sources.load(data)
        figures |= {"mb": round(size / 1e6), "index_s": round(time.perf_counter() - start, 1)}
        start, before = time.perf_counter(), psutil.Process().memory_info().rss
        again = sources.load(data)
        grown = (psutil.Process().memory_info().rss - before) / len(again.ids)
        figures |= {"index_again_s": round(time.perf_counter() - start, 2), "bytes_per_image": round(grown)}
        order = StreamOrder(np.arange(len(table.ids)) // IMAGES, 8, 2048)(np.arange(len(table.ids)), 64, 0, 0)
        figures["http"] = _epoch(table, order, int(0.6e9))
    start = time.perf_counter()
    local = sources.load(Data(root=root, streaming=True))
    figures["headers_of_local_shards_s"] = round(time.perf_counter() - start, 2)
    figures["local"] = _epoch(local, order, 1)
    figures["local_shuffled"] = _epoch(local, np.random.default_rng(0).permutation(order), 1)
    return common.result(figures, 1, "numpy", "opencv-python-headless")
