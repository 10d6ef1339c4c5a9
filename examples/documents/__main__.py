"""A synthetic data set of documents: pages of 17 layouts, clean to train on, clean and damaged ones to be tested on.

`python -m examples.documents.__main__ DIR` writes train.csv and train/, test.csv and test/, and hidden_answers.csv with
the answers and which half a test page is of. Nothing in it is a real document.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2

from config.errors import DataError, TandemError
from config.program.parser import Parser
from data import csvfile
from data.augment.corrupt import corrupt
from data.pixels import Pixels
from data.rng import philox
from examples.documents.layouts import LAYOUTS, page

TRAIN, TEST = 24, 12  # pages of each layout
_SMALL, _FEW = ("cheque", "memo", "passport"), 3  # layouts with only a third of the training pages


class Page(NamedTuple):
    """One page and where it belongs; `half` is train, clean or corrupted."""

    name: str
    target: str
    half: str
    image: Pixels


def pages(train: int = TRAIN, test: int = TEST, seed: int = 0) -> Iterator[Page]:
    """All pages: `train` of each layout to train on (a third for three of them), `test` clean and the same damaged."""
    for number, layout in enumerate(LAYOUTS):
        for i in range(max(train // _FEW, 1) if layout in _SMALL else train):
            yield Page(f"train_{number:02}_{i:03}.jpg", layout, "train", page(layout, philox(seed, "page", number, i)))
        for i in range(test):
            shuffled = (number * test + i) * 7919 % (len(LAYOUTS) * test)  # so that names tell nothing
            image = page(layout, philox(seed, "test page", number, i))
            yield Page(f"test_{shuffled:04}.jpg", layout, "clean", image)
            damaged = corrupt(image, philox(seed, "damage", number, i))
            yield Page(f"test_{shuffled + len(LAYOUTS) * test:04}.jpg", layout, "corrupted", damaged)


def write(root: Path, train: int = TRAIN, test: int = TEST, seed: int = 0) -> Path:
    """Write the data set into an empty or new folder; `DataError` where something is there."""
    if root.exists() and any(root.iterdir()):
        raise DataError(f"{root}: is not empty; choose a new folder for the documents")
    rows = []
    for name, target, half, image in pages(train, test, seed):
        folder = root / ("train" if half == "train" else "test")
        folder.mkdir(parents=True, exist_ok=True)
        _, content = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
        (folder / name).write_bytes(content.tobytes())
        rows.append((name, target, half))
    tested = sorted(row for row in rows if row[2] != "train")
    csvfile.write(root / "train.csv", ("ID", "target"), (row[:2] for row in rows if row[2] == "train"))
    csvfile.write(root / "test.csv", ("ID",), (row[:1] for row in tested))
    csvfile.write(root / "hidden_answers.csv", ("ID", "target", "half"), tested)
    return root


def main(argv: list[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = Parser(prog="python -m examples.documents.__main__", description="Write synthetic documents.")
    parser.add_argument("root", type=Path, help="the folder to write; made where it is missing")
    parser.add_argument("--train", type=int, default=TRAIN, help=f"training pages of a layout (default: {TRAIN})")
    parser.add_argument("--test", type=int, default=TEST, help=f"clean test pages of a layout (default: {TEST})")
    parser.add_argument("--seed", type=int, default=0, help="decides every page (default: 0)")
    options = parser.parse_args(argv)
    try:
        print(f"wrote {len(LAYOUTS)} layouts to {write(options.root, options.train, options.test, options.seed)}")
    except TandemError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
