"""The checkpoints in a folder and their state: `python -m training checkpoint`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.errors import CheckpointError
from models import manifest
from models.card import read_card
from training.loop import checkpoint
from training.policy.stopping import HIGHER_IS_BETTER
from training.run import run_dir

_UNITS = (("d", 86400), ("h", 3600), ("min", 60))


@dataclass(frozen=True)
class Entry:
    """One checkpoint: `fault` is "" where it is whole; else epoch, step, model and scores are not known.

    `epoch` counts finished ones; `size` is bytes, `age` seconds by this machine's clock.
    """

    path: Path
    fault: str
    epoch: int | None
    step: int | None
    model: str | None
    scores: dict[str, float]
    size: int
    age: float


def find(path: Path) -> list[Path]:
    """The checkpoints at `path`: itself, or those of a fold or a run, oldest first and the best last."""
    if (path / manifest.NAME).exists():
        return [path]
    checkpoints = [saved for fold in _folds(path) for saved in _of_fold(fold)]
    if not checkpoints:
        raise CheckpointError(f"{path}: holds no checkpoints; give a checkpoint, a fold folder or a run")
    return checkpoints


def look(path: Path) -> Entry:
    """One checkpoint, every file of it compared with its manifest."""
    fault = checkpoint.damage(path)
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    age = time.time() - path.stat().st_mtime
    if fault:
        return Entry(path, fault, None, None, None, {}, size, age)
    state = checkpoint.read_state(path)
    epoch, scores = _progress(state)
    return Entry(path, "", epoch, state.get("step"), read_card(path).model, scores, size, age)


def line(entry: Entry) -> str:
    """One line for people."""
    known = [
        f"epoch {entry.epoch}" if entry.epoch is not None else "",
        f"step {entry.step}" if entry.step is not None else "",
        entry.model or "",
        *(f"{name} {value:.4f}" for name, value in entry.scores.items()),
        f"{entry.size / 2**20:.1f} MiB",
        _age(entry.age),
        entry.fault or "whole",
    ]
    return f"{entry.path}: {', '.join(filter(None, known))}"


def prune(path: Path, keep: int) -> list[Path]:
    """Remove all but the last `keep` checkpoints of a fold or of each fold of a run; the best stays. What was removed.

    Raises `CheckpointError` where a process is training it, or where no whole checkpoint would be left.
    """
    gone: list[Path] = []
    for fold in _folds(path):
        with run_dir.locked(fold):
            checkpoint.newest(fold)  # sets damaged ones aside, so that they do not count
            gone += checkpoint.prune(fold, keep)
    return gone


def _folds(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such folder; give a checkpoint, a fold folder or a run")
    if _of_fold(path):
        yield path
    else:
        yield from (fold for fold in sorted(path.glob("fold_*")) if fold.is_dir())


def _of_fold(path: Path) -> list[Path]:
    best = path / checkpoint.BEST
    return checkpoint.steps(path) + ([best] if best.is_dir() else [])


def _progress(state: dict[str, Any]) -> tuple[int | None, dict[str, float]]:
    """Finished epochs and the scores after the last of them; the best checkpoint has other keys for both."""
    if "loop" in state:
        epoch, row = state["loop"]["epoch"], (state["loop"]["history"] or [{}])[-1]
    else:
        epoch, row = state["epoch"] + 1 if "epoch" in state else None, state.get("scores", {})
    return epoch, {name: row[name] for name in HIGHER_IS_BETTER if name in row}


def _age(seconds: float) -> str:
    if seconds < 0:
        return "written in the future by this clock"
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} old"
    return f"{seconds:.0f} s old"
