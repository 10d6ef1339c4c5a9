"""The embedded data set: the UCI handwritten digits of scikit-learn as image files, in the layout of a competition.

`python -m data.demo DIR` writes it. Training sees train.csv and train/, inference test.csv and test/; the answers of
the test images are in hidden_answers.csv, for the demo's last step alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from config.errors import DataError
from config.places import atomic_write
from config.program import entry
from config.program.parser import Parser
from data import csvfile

SIZE = 32
_HEADER = ("ID", "target")


def write(root: Path | str) -> Path:
    """Write the 1,797 digits below `root` as grey PNGs of 32 x 32 pixels; what is there already is kept.

    A quarter of each class are test images, the same ones every time. Raises `DataError` where `root` holds another
    data set.
    """
    root = Path(root)
    digits = load_digits()
    targets = np.asarray(digits.target, dtype=np.int64)
    names = [f"digit_{i:04d}.png" for i in range(len(targets))]
    split = train_test_split(np.arange(len(targets)), test_size=0.25, stratify=targets, random_state=0)
    train, test = map(np.sort, split)
    _claim(root, csvfile.encode(_HEADER, ((names[i], targets[i]) for i in train)))
    for folder, rows in (("train", train), ("test", test)):
        (root / folder).mkdir(exist_ok=True)
        for i in rows:
            digit = np.rint(digits.images[i] * (255 / 16)).astype(np.uint8)  # values are 0 to 16
            enlarged = cv2.resize(digit, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
            _put(root / folder / names[i], cv2.imencode(".png", enlarged)[1].tobytes())
    _put(root / "test.csv", csvfile.encode(("ID",), ((names[i],) for i in test)))
    _put(root / "sample_submission.csv", csvfile.encode(_HEADER, ((names[i], 0) for i in test)))
    _put(root / "hidden_answers.csv", csvfile.encode(_HEADER, ((names[i], targets[i]) for i in test)))
    return root


def main(argv: list[str] | None = None) -> int:
    """The command line; returns its exit code."""
    return entry.run(_run, argv, "python -m data.demo")


def _run(words: list[str]) -> int:
    parser = Parser(prog="python -m data.demo", description="Write the demo's data set of digits.")
    parser.add_argument("root", type=Path, help="the folder to write; made where it is missing")
    print(f"wrote the digits to {write(parser.parse_args(words).root)}")
    return 0


def _claim(root: Path, table: bytes) -> None:
    """Write train.csv first; `DataError` for a folder with another one, or with images and no train.csv."""
    listed = root / "train.csv"
    foreign = listed.read_bytes() != table if listed.exists() else (root / "train").exists() or (root / "test").exists()
    if foreign:
        raise DataError(f"{root}: holds another data set; choose an empty or new folder for the demo")
    root.mkdir(parents=True, exist_ok=True)
    _put(listed, table)


def _put(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        atomic_write(path, content)


if __name__ == "__main__":
    sys.exit(main())
