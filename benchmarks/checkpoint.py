"""What saving a checkpoint each epoch costs: the training thread's time in it, as a share of the epoch.

    python -m benchmarks.checkpoint --engine torch --json

One real run on the embedded digits; every second epoch waits until its checkpoint is on disk, as saving without the
background thread would, so that both shares come from the same run, machine and minute.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import common
from config import load
from data import demo
from training.loop import checkpoint, trainer
from training.run import train_run


def main() -> int:
    """Print the table or JSON; the exit code is 1 when saving in the background costs 2% of an epoch or more."""
    parser = common.parser(__doc__)
    parser.add_argument("--engine", choices=("torch", "mlx"), default="torch")
    parser.add_argument("--model", default="convnext_atto")
    parser.add_argument("--size", type=int, default=32, help="image size in pixels")
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        epochs, mib = measure(arguments, Path(folder))
    figures = {"checkpoint_mib": mib, "background": summary(epochs[0::2]), "waiting": summary(epochs[1::2])}
    common.report(arguments, figures, len(epochs) // 2, "torch", "mlx", "numpy")
    return int(figures["background"]["share"] >= 0.02)


def measure(arguments: argparse.Namespace, folder: Path) -> tuple[list[tuple[float, float]], float]:
    """Seconds of each epoch but the first and those that it spent saving, every second one waiting; MiB on disk."""
    demo.write(folder / "digits")
    words = ["--data.root", str(folder / "digits"), "--out", str(folder / "runs"), "--weights", "none"]
    words += ["--model", arguments.model, "--data.image_size", str(arguments.size), "--checkpoint.every_minutes", "0"]
    words += ["--train.epochs", str(arguments.epochs + 1), "--stopping.metric", "log_loss"]
    epochs: list[tuple[float, float]] = []
    began, saving = time.perf_counter(), 0.0
    save, close = trainer.Trainer.save, trainer.Trainer._close_epoch

    def timed_save(self: trainer.Trainer, *rest: Any) -> None:
        nonlocal saving
        start = time.perf_counter()
        save(self, *rest)
        if epochs and len(epochs) % 2 == 0:
            self.saver.wait()
        saving += time.perf_counter() - start

    def timed_close(self: trainer.Trainer) -> None:
        nonlocal began, saving
        close(self)
        epochs.append((time.perf_counter() - began, saving))
        began, saving = time.perf_counter(), 0.0

    replaced = mock.patch.multiple(trainer.Trainer, save=timed_save, _close_epoch=timed_close)
    with replaced, contextlib.redirect_stdout(sys.stderr):
        run = train_run.run_all(arguments.engine, load.parse(words, prog="benchmark"), lambda: False)
    last = checkpoint.steps(run / "fold_0")[-1]
    return epochs[1:], round(sum(file.stat().st_size for file in last.iterdir()) / 2**20, 1)


def summary(epochs: list[tuple[float, float]]) -> dict[str, float]:
    """Medians over the epochs."""
    return {
        "share": round(statistics.median(saving / seconds for seconds, saving in epochs), 5),
        "saving_ms": round(1000 * statistics.median(saving for _, saving in epochs), 1),
        "epoch_s": round(statistics.median(seconds for seconds, _ in epochs), 3),
    }


if __name__ == "__main__":
    sys.exit(main())
