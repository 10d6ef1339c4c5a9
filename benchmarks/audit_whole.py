"""The whole audit command on a large data set: wall and processor time, peak memory, and whether it finds its copies.

    python -m benchmarks.audit_whole --data photos.tar --images 33137 --folder /tmp/whole

The data set is written once, of collages: each image is one to four crops of the photographs, mirrored, turned and
toned, so that no two are alike but the copies planted among them (re-encoded, 1 of 50), of which a third lie in the
test set. It is then audited three times as a user would: at first, with nothing changed, and with nothing changed but
the cache of looks gone and the files in the machine's memory.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # started as a file: its folder has our packages' names

from benchmarks.audit import PHOTOS, photographs
from data.augment.ops import compress
from data.decode.image import decode
from data.pixels import Pixels
from data.rng import philox

_SIZE = (375, 500)  # rows and columns, as the photographs have
_EVERY = 50  # one of so many images is a copy of the one before
_CLASSES, _TESTED = 396, 10
_CODE = """
import sys
from benchmarks import rss
from data.__main__ import main
code = main(sys.argv[1:])
print("PEAK", rss.peak())
sys.exit(code)
"""


def main() -> int:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description="The whole audit of a large data set: seconds and memory.")
    parser.add_argument("--data", type=Path, default=PHOTOS, help="a folder of photographs, or a tar of one")
    parser.add_argument("--images", type=int, default=33137)
    parser.add_argument("--folder", type=Path, required=True, help="where the data set is, or is written once")
    arguments = parser.parse_args()
    if not (arguments.folder / "made").exists():
        # In a process of its own: on Linux a child's peak of memory begins with what its parent held.
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            process.submit(write, arguments.data, arguments.folder, arguments.images).result()
    with tempfile.TemporaryDirectory() as place:
        first = audited(arguments.folder, Path(place), "first")
        again = audited(arguments.folder, Path(place), "again")
        shutil.rmtree(Path(place) / "cache")
        warm = audited(arguments.folder, Path(place), "warm")
    machine = f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}"
    result = {"date": str(date.today()), "machine": machine, "images": arguments.images}
    print(json.dumps({**result, "first": first, "unchanged": again, "without_cache": warm}, indent=1))
    return 0


def write(photos: Path, folder: Path, images: int) -> None:
    """Write `images` files of about 500 x 375 pixels, a tenth of them the test set, the others in class folders."""
    with tempfile.TemporaryDirectory() as place:
        sources = [decode(path) for path in photographs(photos, Path(place))]
    paths = [_place(folder, number) for number in range(images)]
    for parent in {path.parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)

    def make(number: int) -> None:
        copy = number % _EVERY == 1
        image = collage(sources, number - copy)
        image = compress(image, 60) if copy else image
        cv2.imwrite(str(paths[number]), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(make, range(images)))
    (folder / "made").touch()


def _place(folder: Path, number: int) -> Path:
    if (number % _TESTED == 1 and number % (3 * _EVERY) == 1) or number % _TESTED == 5:
        return folder / "test" / f"{number:06}.jpg"
    return folder / "train" / f"class_{number // 2 % _CLASSES:03}" / f"{number:06}.jpg"


def collage(sources: list[Pixels], number: int) -> Pixels:
    """Image `number`: one to four crops of photographs side by side, each mirrored, turned and toned by chance."""
    rng = philox(0, "collage", number)
    rows, columns = [(1, 1), (1, 2), (2, 1), (2, 2)][int(rng.integers(4))]
    height, width = _SIZE[0] // rows, _SIZE[1] // columns
    strips = [np.hstack([_crop(sources, rng, height, width) for _ in range(columns)]) for _ in range(rows)]
    return np.ascontiguousarray(np.vstack(strips))


def _crop(sources: list[Pixels], rng: np.random.Generator, height: int, width: int) -> Pixels:
    source = sources[int(rng.integers(len(sources)))]
    scale, angle = rng.uniform(1.2, 3.0), rng.uniform(-25, 25)
    center = (rng.uniform(0.2, 0.8) * source.shape[1], rng.uniform(0.2, 0.8) * source.shape[0])
    matrix = cv2.getRotationMatrix2D(center, angle, scale)
    matrix[:, 2] += (width / 2 - center[0], height / 2 - center[1])
    made = cv2.warpAffine(source, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    made = cv2.flip(made, 1) if rng.random() < 0.5 else made
    return np.asarray(cv2.convertScaleAbs(made, alpha=rng.uniform(0.7, 1.2), beta=rng.uniform(-20, 20)), dtype=np.uint8)


def audited(folder: Path, place: Path, name: str) -> dict[str, Any]:
    """Seconds of the clock and of the processors, MiB at the peak, and findings by kind of one run of the command."""
    out = place / name
    environment = {**os.environ, "TANDEM_CACHE": str(place / "cache")}
    command = [sys.executable, "-c", _CODE, "audit", "--root", str(folder), "--out", str(out)]
    used, start = _used(), time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, busy = time.perf_counter() - start, _used() - used
    peak = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("PEAK"))
    kinds: dict[str, int] = {}
    with (out / "audit.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            kinds[row["finding"]] = kinds.get(row["finding"], 0) + 1
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(busy, 1),
        "peak_mib": round(int(peak) / 2**20),
        "page_mib": round((out / "audit.html").stat().st_size / 2**20, 2),
        "findings": kinds,
    }


def _used() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


if __name__ == "__main__":
    sys.exit(main())
