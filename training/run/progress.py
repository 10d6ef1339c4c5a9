"""What a user sees while a fold trains: a progress bar on a terminal or in a notebook, plain lines elsewhere,
`history.csv` and `history.jsonl`, and the trackers that are switched on. While it trains, `progress.json` says how far
an epoch is.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from config.places import atomic_path, atomic_write
from config.schema import Settings
from data.cores import cores
from data.progress_bar import NotebookBar, is_notebook
from training.loop import bottleneck
from training.loop.fold_data import FoldData
from training.loop.state import Callbacks
from training.run import results, run_dir
from training.trackers.broadcast import Broadcast
from training.trackers.machine import Machine

OnEpoch = Callable[[dict[str, float], bool], None]
_REPORTED_EVERY = 2.0  # seconds


class Progress:
    """A context around one fold's training; `events` goes to the loop, `describe` is the session's."""

    def __init__(
        self,
        settings: Settings,
        fold: int,
        data: FoldData,
        folder: Path,
        describe: Callable[[], dict[str, Any]],
        on_epoch: OnEpoch = lambda *_: None,
    ):
        self.settings, self.fold, self.folder, self.on_epoch = settings, fold, folder, on_epoch
        self.console = Console(soft_wrap=True, highlight=False, force_jupyter=False)  # plain lines in a notebook, too
        self.bar: Bar | None = None
        self.notebook: NotebookBar | None = None
        self.advised = False
        self.events = Callbacks(step=self._step, epoch=self._epoch, say=self._say)
        self.window = (time.perf_counter(), 0)
        self.started: tuple[float, int] | None = None  # clock and update of the first step of this process
        self.reported = 0.0
        self.machine = Machine(describe, folder)
        self.broadcast = Broadcast(settings, folder, data, self._say)

    def __enter__(self) -> Progress:
        if is_notebook():
            self.notebook = NotebookBar(f"fold {self.fold}", "step")
        elif self.console.is_terminal:
            self.bar = Bar(
                TextColumn("fold {task.fields[fold]}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                transient=True,
            )
            self.task = self.bar.add_task("train", total=None, fold=self.fold, note="")
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()
        if self.notebook:
            self.notebook.close()
        self.broadcast.close()

    def _step(self, epoch: int, update: int, updates: int, samples: int, loss: float) -> None:
        if self.notebook:
            self.notebook.update(update, updates)
        now = time.perf_counter()
        since, images = self.window
        images += samples
        rate = images / max(now - since, 1e-9)
        self.window = (since, images) if now - since < 5 else (now, 0)
        self.started = self.started or (now, update)
        if self.bar:
            memory = psutil.Process().memory_info().rss / 2**30
            note = f"epoch {epoch + 1}  loss {loss:.4f}  {rate:.0f} images/s  {memory:.1f} GiB"
            self.bar.update(self.task, completed=update, total=updates, note=note)
        if now - self.reported > _REPORTED_EVERY:
            self.reported = now
            self._report(epoch, update, updates, rate, loss)

    def _report(self, epoch: int, update: int, updates: int, rate: float, loss: float) -> None:
        """Replace `progress.json`, which the board reads; its `owner` tells whether this process still lives."""
        began, first = self.started or (0.0, 0)
        left = (self.reported - began) / (update - first) * (updates - update) if update > first else None
        row = {"owner": run_dir.owner(), "epoch": epoch + 1, "update": update, "updates": updates}
        row |= {
            "loss": loss if math.isfinite(loss) and loss else None,
            "images_per_second": round(rate, 1),
            "seconds_left": left,
        }
        atomic_write(self.folder / run_dir.PROGRESS, json.dumps(row))

    def _epoch(self, row: dict[str, float], best: bool) -> None:
        self._write(row, best)
        self.broadcast.epoch(int(row["epoch"]))
        if self.notebook:
            scores = f"val loss {row['log_loss']:.4f}, accuracy {row['accuracy']:.4f}, macro-F1 {row['macro_f1']:.4f}"
            self.notebook.note(f"epoch {row['epoch']:.0f}/{self.settings.train.epochs}, {scores}")
        else:
            self._say(
                f"fold {self.fold}  epoch {row['epoch']:.0f}/{self.settings.train.epochs}  lr {row['lr']:.2e}  "
                f"train loss {row['train_loss']:.4f}  val loss {row['log_loss']:.4f}  accuracy {row['accuracy']:.4f}  "
                f"macro-F1 {row['macro_f1']:.4f}  {row['images_per_second']:.0f} images/s  "
                f"{bottleneck.shares(row)}{'  best' if best else ''}"
            )
        advice = bottleneck.advice(row, self.settings, cores())
        if advice and not self.advised:
            self._say(advice)
            self.advised = True
        self.on_epoch(row, best)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def _write(self, row: dict[str, Any], best: bool) -> None:
        """Append to `history.csv` and, with the time and what the machine did, to `history.jsonl`; rows from this epoch
        on, of a run that was resumed from an earlier one, are replaced."""
        earlier = [r for r in results.history(self.folder) if int(r["epoch"]) < int(row["epoch"])]
        with atomic_path(self.folder / "history.csv") as unfinished, unfinished.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(row), extrasaction="ignore")
            writer.writeheader()
            writer.writerows([*earlier, row])
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        rows = [r for r in results.epochs(self.folder) if r["epoch"] < row["epoch"]]
        rows.append({**row, "best": best, "time": now, "system": self.machine.used()})
        results.write_epochs(self.folder, rows)
