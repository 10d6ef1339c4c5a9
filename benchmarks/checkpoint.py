"""What saving a checkpoint each epoch costs: the training thread's time in it, as a share of the epoch.

    python -m benchmarks.checkpoint --engine torch --json

One real run on the embedded digits; every second epoch waits until its checkpoint is on disk, as saving without the
background thread would, so that both shares come from the same run, machine and minute.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import common
from config import load
from data import demo
from training.loop import checkpoint, trainer
from training.run import train_run


def main() -> int:
    """Print the table or JSON; the exit code is 1 when saving in the background costs 2% of an epoch or more."""
    parser = common.parser(__doc__)
    parser.add_argument("--engine", choices=("torch", "mlx", "numpy"), default="torch")
    parser.add_argument("--model", default="convnext_atto")
    parser.add_argument("--size", type=int, default=32, help="image size in pixels")
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        epochs, mib = measure(arguments, Path(place))
    result = {"checkpoint_mib": mib, **summary(epochs)}
    common.tell(arguments, result, "torch", "mlx", "numpy")
    return int(result["background"]["share"] >= 0.02)


def measure(arguments: argparse.Namespace, place: Path) -> tuple[list[dict[str, float]], float]:
    """For each epoch but the first: whether it waited, its seconds, and those that the training thread spent saving."""
    demo.write(place / "digits")
    words = ["--data.root", str(place / "digits"), "--out", str(place / "runs"), "--weights", "none"]
    words += ["--model", arguments.model, "--data.image_size", str(arguments.size), "--checkpoint.every_minutes", "0"]
    words += ["--train.epochs", str(arguments.epochs + 1), "--stopping.metric", "log_loss"]
    epochs: list[dict[str, float]] = []
    with _timed(epochs), contextlib.redirect_stdout(sys.stderr):
        folder = train_run.run_all(arguments.engine, load.parse(words, prog="benchmark"), lambda: False)
    last = checkpoint.steps(folder / "fold_0")[-1]
    return epochs[1:], round(sum(file.stat().st_size for file in last.iterdir()) / 2**20, 1)


class _timed:
    """Measures each epoch of a fold from the outside."""

    def __init__(self, epochs: list[dict[str, float]]):
        self.epochs = epochs
        self.save, self.close = trainer.Trainer.save, trainer.Trainer._close_epoch

    def __enter__(self) -> None:
        clock, outer = [time.perf_counter(), 0.0], self

        @functools.wraps(self.save)
        def save(fit: trainer.Trainer, *rest: Any) -> None:
            began = time.perf_counter()
            outer.save(fit, *rest)
            if len(outer.epochs) % 2:
                fit.saver.wait()
            clock[1] += time.perf_counter() - began

        @functools.wraps(self.close)
        def close(fit: trainer.Trainer) -> None:
            outer.close(fit)
            now = time.perf_counter()
            waited = float(len(outer.epochs) % 2)
            outer.epochs.append({"waited": waited, "seconds": now - clock[0], "saving": clock[1]})
            clock[:] = [now, 0.0]

        self._put(save, close)

    def __exit__(self, *_: object) -> None:
        self._put(self.save, self.close)

    def _put(self, save: Callable[..., None], close: Callable[..., None]) -> None:
        for name, function in (("save", save), ("_close_epoch", close)):
            setattr(trainer.Trainer, name, function)


def summary(epochs: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the epochs of both kinds, n each."""
    found = {}
    for name, waited in (("background", 0), ("waiting", 1)):
        mine = [epoch for epoch in epochs if epoch["waited"] == waited]
        found[name] = {
            "share": round(statistics.median(epoch["saving"] / epoch["seconds"] for epoch in mine), 5),
            "saving_ms": round(1000 * statistics.median(epoch["saving"] for epoch in mine), 1),
            "epoch_s": round(statistics.median(epoch["seconds"] for epoch in mine), 3),
            "n": len(mine),
        }
    return found


if __name__ == "__main__":
    sys.exit(main())
