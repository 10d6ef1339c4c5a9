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
    """Print a table or JSON."""
    parser = common.parser(__doc__, photographs=True)
    parser.add_argument("--images", type=int, default=33137, help="size of the data set to extrapolate to")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["TANDEM_CACHE"] = str(Path(place) / "cache")
        originals = sorted(common.photographs(arguments.data, 0, Path(place) / "photos" / "even").iterdir())
        forms = {name: planted(originals, form, Path(place) / "forms" / name) for name, form in FORMS.items()}
        cost = looking(originals, Path(place) / "again", arguments.workers, arguments.images)
        cost |= searching(originals, arguments.images)
    cost["peak_mib"] = round(common.peak() / 2**20)
    common.tell(arguments, {"photographs": len(originals), "forms": forms, **cost}, "opencv-python-headless")
    return 0


def cropped(image: Pixels, top: float, left: float) -> Pixels:
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
    "cropped by 5%, centre": lambda image: cropped(image, 0.5, 0.5),
    "cropped by 5%, corner": lambda image: cropped(image, 1.0, 1.0),
}


def planted(originals: list[Path], form: Callable[[Pixels], Pixels], folder: Path) -> dict[str, float]:
    """Recall and precision for one form of every photograph, all as JPEG 95 files."""
    folder.mkdir(parents=True)
    copies = [folder / f"{i}.jpg" for i in range(len(originals))]
    for path, copy in zip(originals, copies, strict=True):
        changed = np.ascontiguousarray(form(decode(path)))
        cv2.imwrite(str(copy), cv2.cvtColor(changed, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
    count = len(originals)
    pairs = {
        (min(pair[:2]), max(pair[:2])) for pair in survey([*originals, *copies], originals[0].parent, workers=2).pairs
    }
    right = len(pairs & {(i, i + count) for i in range(count)})
    return {"recall": round(right / count, 4), "precision": round(right / max(len(pairs), 1), 4)}


def looking(originals: list[Path], place: Path, workers: int, images: int) -> dict[str, float]:
    """Milliseconds to look at a photograph, with `workers` threads, and again from the cache.

    The processor's time is told beside the clock's: on a machine that does other work as well, only it says what a look
    costs.
    """
    place.mkdir()
    seconds, busy = [], []
    for _ in range(2):
        start, used = time.perf_counter(), time.process_time()
        survey(originals, place, workers=workers)
        seconds.append(time.perf_counter() - start)
        busy.append(time.process_time() - used)
    each, cpu = seconds[0] / len(originals), busy[0] / len(originals)
    again = seconds[1] / len(originals)
    return {
        "ms_an_image": round(1000 * each, 2),
        "cpu_ms_an_image": round(1000 * cpu, 2),
        "ms_an_image_again": round(1000 * again, 3),
        "minutes_of_free_cores": round(cpu * images / 60 / workers, 2),
        "minutes_to_look_at_all": round(each * images / 60, 2),
        "seconds_again": round(again * images, 1),
    }


def searching(originals: list[Path], images: int) -> dict[str, float]:
    """Seconds of the processor to find the pairs among `images` pictures, and among twice as many."""
    seen = survey(originals, originals[0].parent).pictures
    seconds = {}
    for count in (images, 2 * images):
        chosen = philox(0, "mixtures", count)
        draws = chosen.integers(0, (len(seen), len(seen), 64, 64), (count, 4)).tolist()
        mixed = (np.roll(cv2.addWeighted(seen[a], 0.7, seen[b], 0.3, 0), (x, y), (0, 1)) for a, b, x, y in draws)
        pictures = np.stack(list(mixed))
        own = np.stack([hashes(picture) for picture in pictures])
        start = time.process_time()
        duplicates.find(pictures, own)
        seconds[f"cpu_seconds_to_search_{count}"] = round(time.process_time() - start, 1)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
