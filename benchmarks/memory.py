"""Peak memory of what grows with images and classes: a run's start, an epoch's index, validation, the end of a run.

    python -m benchmarks.memory --json
    python -m benchmarks.memory --images 20000 --classes 10000

The data set is a table without files, its pixels are zeros, and the engine is NumPy's: what is measured is what Tandem
keeps of the images beside pixels and network. Each part is a process of its own, whose peak includes the interpreter
and the packages that it imports. `dense_gib` is what the part's largest array would take if it were made whole:
targets float32 `[images, classes]`, and probabilities float64 `[validation, classes]`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import common
from config import load
from config.schema import Settings
from data import folds
from data.decode.image import Shrink
from data.pixels import Pixels
from data.rng import philox
from data.sources.table import Table
from training.loop import evaluation, metrics, trainer
from training.loop.state import Callbacks
from training.policy import loss
from training.run import distillation, fold, prepare, results

SIZE, BATCH = 32, 256
LIMIT_GIB = 2.0


def settings(folder: Path) -> Settings:
    """A plain run with what takes memory for each image: mining, balanced draws, class weights."""
    words = ["--data.root", str(folder), "--out", str(folder), "--model", "convnext_atto", "--weights", "none"]
    words += ["--data.image_size", str(SIZE), "--train.batch_size", str(BATCH), "--data.workers", "1"]
    words += ["--mining.cap", "0.3", "--mining.start_epoch", "1", "--sampling.kind", "square_root"]
    words += ["--loss.class_weights", "balanced", "--loss.label_smoothing", "0.1", "--data.audit", "false"]
    return load.parse(words, prog="benchmarks.memory")


def table(images: int, classes: int, folder: Path) -> Table:
    """As many images as ImageNet's folders name them; every class has about as many."""
    names = tuple(f"n{number:08}" for number in range(classes))
    labels = philox(0, "labels").permutation(np.arange(images) % classes)
    ids = [f"{names[label]}/{names[label]}_{number}.JPEG" for number, label in enumerate(labels.tolist())]
    return Table(ids, [folder / "train" / name for name in ids], labels, names, folder)


def start(images: int, classes: int, validation: int, folder: Path) -> None:
    """All that a run makes before its first batch: folds written and read back, targets, loaders, the first order."""
    folder.mkdir(exist_ok=True)
    given = table(images, classes, folder)
    wish, spec, given = prepare.prepare(settings(folder), given)
    wish = wish.model_copy(update={"folds": wish.folds.model_copy(update={"val_fraction": validation / images})})
    fold_of = prepare.keep_folds(wish, given, folder)
    fold_of = prepare.keep_folds(wish, given, folder)  # a run that is resumed
    card = prepare.card_of(wish, spec, given, "numpy")
    teaching = distillation.read(wish, given)
    distillation.check(teaching, given, fold_of, [0])
    job = fold.Job("numpy", wish, spec, card, given, _black, fold_of, teaching, folder, lambda: False)
    data = fold.load_data(job, 0)
    loss.spec(wish.loss, given.labels[~folds.validates(fold_of, 0)], classes)
    fit = trainer.Trainer(_NoSession(), data, wish, card, folder, Callbacks())
    fit.mining.observe(np.arange(len(data.train_labels)), np.zeros(len(data.train_labels), np.float32))
    fit.mining.close_epoch()
    order = fit._order(1)
    for _, loaded in zip(range(3), data.train[0].epoch(order), strict=False):
        data.train_targets[loaded.index]


def epoch(images: int, classes: int, validation: int, folder: Path) -> None:  # noqa: ARG001
    """Validation after an epoch: logits as the batches bring them, their scores, and the fold's OOF file."""
    evaluated(validation, classes, folder)


def evaluated(validation: int, classes: int, folder: Path) -> None:
    """Score answers as an epoch does and write them as those of a finished fold."""
    logits, targets = answers(validation, classes)
    kept = evaluation.answered(logits)
    metrics.scores(logits[kept], targets[kept])
    place = folder / "fold_0"
    place.mkdir(exist_ok=True)
    evaluation.write_oof(place, [f"{number:08}.JPEG" for number in range(validation)], logits, targets)
    (place / "result.yaml").write_text(yaml.safe_dump({"fold": 0}))


def end(images: int, classes: int, validation: int, folder: Path) -> None:  # noqa: ARG001
    """The end of a run: what its OOF answers are read for, without the page's pictures."""
    from training.report import figures

    evaluated(validation, classes, folder)
    _, logits, targets = results.oof(folder)
    counts = metrics.confusion(logits, targets)
    names = tuple(f"n{number:08}" for number in range(classes))
    figures.matrix(counts, names)
    figures.classes(counts, names)
    figures.reliability(logits, targets)


def answers(count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 `[count, classes]` of a network that is right in three of four, a batch at a time, and targets."""
    targets = np.arange(count) % classes
    logits = np.empty((count, classes), np.float32)
    for first in range(0, count, BATCH):
        rng = philox(0, "logits", first)
        part = logits[first : first + BATCH]
        part[:] = rng.standard_normal(part.shape, np.float32)
        right = np.flatnonzero(rng.random(len(part)) < 0.75)
        part[right, targets[first + right]] += 8
    return logits, targets


PARTS: dict[str, Callable[[int, int, int, Path], None]] = {"start": start, "epoch": epoch, "end": end}


def main() -> int:
    """Print the table or JSON; 1 where a part exceeds the limit."""
    parser = common.parser(__doc__)
    parser.add_argument("--images", type=int, default=1_281_167 + 50_000, help="training and validation images")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=50_000, help="how many of the images validate")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = (arguments.images, arguments.classes, arguments.validation)
    if arguments.part:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[arguments.part](*sizes, Path(folder))
        print(common.peak())
        return 0
    result: dict[str, Any] = {}
    dense = {"start": 4 * arguments.images, "epoch": 8 * arguments.validation, "end": 8 * arguments.validation}
    for part in PARTS:
        peak = _peak(part, sizes)
        result[part] = {
            "peak_gib": round(peak / 2**30, 2),
            "dense_gib": round(dense[part] * arguments.classes / 2**30, 2),
            "of_limit": round(peak / 2**30 / LIMIT_GIB, 2),
        }
    del arguments.part
    common.tell(arguments, result, "numpy", "scikit-learn")
    return int(any(row["of_limit"] > 1 for row in result.values()))


def _peak(part: str, sizes: tuple[int, int, int]) -> int:
    named = zip(("--images", "--classes", "--validation"), map(str, sizes), strict=True)
    words = [sys.executable, "-m", "benchmarks.memory", "--part", part, *(word for pair in named for word in pair)]
    done = subprocess.run(words, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{part}: {done.stderr.strip()[-2000:]}")
    return int(done.stdout.split()[-1])


def _black(path: Path, shrink: Shrink) -> Pixels:  # noqa: ARG001
    return np.zeros((SIZE, SIZE, 3), np.uint8)


class _NoSession:
    """Stands for the engine, which no part asks for anything."""

    rank = 0


if __name__ == "__main__":
    raise SystemExit(main())
