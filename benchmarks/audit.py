"""How many planted copies the audit finds, how many of its pairs are copies, and what it costs for a large data set.

    python -m benchmarks audit --data photos.tar --images 33137 --json

Every photograph is planted once in each form, beside all the originals: recall is the share of copies found, precision
the share of the pairs found that were planted. The search is timed with as many hashes and pictures as `--images`
says, mixtures of the photographs' own, shifted each by itself, so that they crowd as those of photographs do.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from benchmarks import common
from benchmarks.common import Result, comparison, option
from data.audit import duplicates
from data.audit.fingerprint import hashes
from data.audit.survey import survey
from data.augment.ops import compress
from data.decode.image import decode
from data.pixels import Pixels
from data.rng import philox

WORKERS = 2


@comparison(
    "audit",
    common.PHOTOGRAPHS,
    option("--images", type=int, default=33137, help="size of the data set to extrapolate to"),
)
def audit(arguments: argparse.Namespace, folder: Path) -> Result:
    """Recall and precision of each form, and what reading and searching cost."""
    os.environ["TANDEM_CACHE"] = str(folder / "cache")
    originals = common.photographs(arguments.data, 0, folder / "photos" / "even")
    forms = {name: planted(originals, form, folder / "forms" / name) for name, form in FORMS.items()}
    (folder / "again").mkdir()
    cost = surveying(originals, folder / "again", arguments.images) | searching(originals, arguments.images)
    return common.result({"forms": forms, **cost}, len(originals), "opencv-python-headless")


def _cropped(image: Pixels, top: float, left: float) -> Pixels:
    """The image without 5% of its height and width: `top` and `left` of those are cut at the top and the left."""
    height, width = image.shape[:2]
    rows, columns = round(0.95 * height), round(0.95 * width)
    y, x = round((height - rows) * top), round((width - columns) * left)
    return image[y : y + rows, x : x + columns]


FORMS: dict[str, Callable[[Pixels], Pixels]] = {
    "re-encoded (JPEG 90)": lambda image: compress(image, 90),
    "re-encoded (JPEG 50)": lambda image: compress(image, 50),
    "resized by 0.5": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "resized by 1.5": lambda image: cv2.resize(image, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC),
    "squashed to 224 x 224": lambda image: cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA),
    "flipped left to right": lambda image: cv2.flip(image, 1),
    "flipped top to bottom": lambda image: cv2.flip(image, 0),
    "rotated by 90 degrees": lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    "rotated by 270 degrees": lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
    "brightness times 1.3": lambda image: cv2.convertScaleAbs(image, alpha=1.3),
    "brightness times 0.7": lambda image: cv2.convertScaleAbs(image, alpha=0.7),
    "brightness plus 30": lambda image: cv2.convertScaleAbs(image, beta=30),
    "cropped by 5%, centre": lambda image: _cropped(image, 0.5, 0.5),
    "cropped by 5%, corner": lambda image: _cropped(image, 1.0, 1.0),
}


def planted(originals: list[Path], form: Callable[[Pixels], Pixels], folder: Path) -> dict[str, float]:
    """Recall and precision for one form of every photograph, all as JPEG 95 files."""
    folder.mkdir(parents=True)
    copies = [folder / f"{i}.jpg" for i in range(len(originals))]
    for path, copy in zip(originals, copies, strict=True):
        changed = np.ascontiguousarray(form(decode(path)))
        cv2.imwrite(str(copy), cv2.cvtColor(changed, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
    count, reported = len(originals), survey([*originals, *copies], originals[0].parent, workers=WORKERS).pairs
    pairs = {(min(pair[:2]), max(pair[:2])) for pair in reported}
    hits = len(pairs & {(i, i + count) for i in range(count)})
    return {"recall": round(hits / count, 4), "precision": round(hits / max(len(pairs), 1), 4)}


def surveying(originals: list[Path], folder: Path, images: int) -> dict[str, float]:
    """Milliseconds for a photograph, by the clock and of the CPU, and again from the cache; minutes for `images`."""

    def read() -> None:
        survey(originals, folder, workers=WORKERS)

    cpu = time.process_time()
    ms = 1000 * common.seconds(read) / len(originals)
    cpu = 1000 * (time.process_time() - cpu) / len(originals)
    again = 1000 * common.seconds(read) / len(originals)
    figures = {"ms_per_image": round(ms, 2), "cpu_ms_per_image": round(cpu, 2), "ms_per_image_again": round(again, 3)}
    return figures | {f"minutes_for_{images}": round(ms * images / 60_000, 2)}


def searching(originals: list[Path], images: int) -> dict[str, float]:
    """CPU seconds to find the pairs among `images` pictures, and among twice as many."""
    pictures = survey(originals, originals[0].parent).pictures
    figures = {}
    for count in (images, 2 * images):
        rng = philox(0, "mixtures", count)
        draws = rng.integers(0, (len(pictures), len(pictures), 64, 64), (count, 4)).tolist()
        blends = ((cv2.addWeighted(pictures[a], 0.7, pictures[b], 0.3, 0), (x, y)) for a, b, x, y in draws)
        mixed = np.stack([np.roll(blend, shift, (0, 1)) for blend, shift in blends])
        bits = np.stack([hashes(picture) for picture in mixed])
        taken = common.seconds(partial(duplicates.find, mixed, bits), time.process_time)
        figures[f"cpu_seconds_to_search_{count}"] = round(taken, 1)
    return figures
