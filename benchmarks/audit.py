"""How many planted copies the audit finds, how many of its pairs are copies, and what it costs for a large data set.

    python -m benchmarks.audit --data photos.tar --images 33137 --json

Every photograph is planted once in each form, beside all the originals: recall is the share of copies found, precision
the share of the pairs found that were planted. The search is timed with as many hashes and pictures as `--images`
says, mixtures of the photographs' own, shifted each by itself, so that they crowd as those of photographs do.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from benchmarks import common
from data.audit import duplicates
from data.audit.fingerprint import hashes
from data.audit.survey import survey
from data.augment.ops import compress
from data.decode.image import decode
from data.pixels import Pixels
from data.rng import philox


def main() -> int:
    """Print the table or JSON."""
    parser = common.parser(__doc__, photographs=True)
    parser.add_argument("--images", type=int, default=33137, help="size of the data set to extrapolate to")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TANDEM_CACHE"] = str(Path(folder) / "cache")
        originals = sorted(common.photographs(arguments.data, 0, Path(folder) / "photos" / "even").iterdir())
        forms = {name: planted(originals, form, Path(folder) / "forms" / name) for name, form in FORMS.items()}
        cost = surveying(originals, Path(folder) / "again", arguments.workers, arguments.images)
        cost |= searching(originals, arguments.images)
    common.report(arguments, {"forms": forms, **cost}, len(originals), "opencv-python-headless")
    return 0


def _cropped(image: Pixels, top: float, left: float) -> Pixels:
    """The image without 5% of its height and width: `top` and `left` of those are cut at the top and the left."""
    height, width = image.shape[:2]
    rows, columns = round(0.95 * height), round(0.95 * width)
    y, x = round((height - rows) * top), round((width - columns) * left)
    return image[y : y + rows, x : x + columns]


def _scaled(image: Pixels, factor: float) -> Pixels:
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


FORMS: dict[str, Callable[[Pixels], Pixels]] = {
    "re-encoded (JPEG 90)": lambda image: compress(image, 90),
    "re-encoded (JPEG 50)": lambda image: compress(image, 50),
    "resized by 0.5": lambda image: _scaled(image, 0.5),
    "resized by 1.5": lambda image: _scaled(image, 1.5),
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
    count, reported = len(originals), survey([*originals, *copies], originals[0].parent, workers=2).pairs
    pairs = {(min(pair[:2]), max(pair[:2])) for pair in reported}
    right = len(pairs & {(i, i + count) for i in range(count)})
    return {"recall": round(right / count, 4), "precision": round(right / max(len(pairs), 1), 4)}


def surveying(originals: list[Path], folder: Path, workers: int, images: int) -> dict[str, float]:
    """Milliseconds for a photograph, with `workers` threads, by the clock and of the CPU, and again from the cache."""
    folder.mkdir()
    taken = []
    for _ in range(2):
        start, cpu = time.perf_counter(), time.process_time()
        survey(originals, folder, workers=workers)
        taken.append((np.array([time.perf_counter() - start, time.process_time() - cpu]) / len(originals)).tolist())
    (seconds, cpu), (again, _) = taken
    return {
        "ms_per_image": round(1000 * seconds, 2),
        "cpu_ms_per_image": round(1000 * cpu, 2),
        "ms_per_image_again": round(1000 * again, 3),
        f"minutes_for_{images}": round(seconds * images / 60, 2),
        f"seconds_again_for_{images}": round(again * images, 1),
    }


def searching(originals: list[Path], images: int) -> dict[str, float]:
    """CPU seconds to find the pairs among `images` pictures, and among twice as many."""
    pictures = survey(originals, originals[0].parent).pictures
    seconds = {}
    for count in (images, 2 * images):
        rng = philox(0, "mixtures", count)
        draws = rng.integers(0, (len(pictures), len(pictures), 64, 64), (count, 4)).tolist()
        blends = ((cv2.addWeighted(pictures[a], 0.7, pictures[b], 0.3, 0), (x, y)) for a, b, x, y in draws)
        mixed = np.stack([np.roll(blend, shift, (0, 1)) for blend, shift in blends])
        bits = np.stack([hashes(picture) for picture in mixed])
        start = time.process_time()
        duplicates.find(mixed, bits)
        seconds[f"cpu_seconds_to_search_{count}"] = round(time.process_time() - start, 1)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
