"""How a training ended without a result: the error in `failed.yaml` of a fold's folder, and the message of a stop.

Runs, members of campaigns and trials are recorded alike; the board and the report read the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from backends.group import Group
from config.errors import Interrupted, TandemError, reason
from config.places import atomic_write
from training.loop import memory
from training.run import results, run_dir

FAILED = "failed.yaml"
_progress: set[Path] = set()  # of the folds that this process trains now


@contextmanager
def recorded(folder: Path, engine: str, group: Group, stop_requested: Callable[[], bool]) -> Iterator[None]:
    """Train the fold in `folder` inside this context: an error is written to its `failed.yaml`, a stop is not.

    Only a process that is killed leaves the fold's `progress.json`.
    """
    progress = folder / run_dir.PROGRESS
    if group.rank == 0:
        (folder / FAILED).unlink(missing_ok=True)
        _progress.add(progress)
        atomic_write(progress, json.dumps({"owner": run_dir.owner()}))
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        if isinstance(error, TandemError) or not stop_requested():  # else it is a library's answer to the signal
            _record(folder, engine, group, error)
        raise
    finally:
        if group.rank == 0:
            progress.unlink(missing_ok=True)
            _progress.discard(progress)


def leave_at_once(code: int) -> None:
    """End this process now, at the user's request: its fold does not count as killed."""
    for progress in _progress:
        progress.unlink(missing_ok=True)
    os._exit(code)


def left_out(folder: Path) -> dict[str, Any] | None:
    """The record of the fold in `folder` where a campaign left it out; None of any other fold."""
    file = folder / FAILED
    if not file.exists() or (folder / run_dir.RESULT).exists():
        return None
    row: dict[str, Any] = results.read_yaml(file)
    return row if row.get("left_out", True) else None  # earlier versions wrote it of folds that were left out alone


def stopped(folder: Path) -> str:
    """The message for a user who stopped the run or the campaign in `folder`."""
    saved = any(folder.rglob("step_*")) or any(folder.rglob(run_dir.RESULT))
    return "stopped; everything is saved" if saved else "stopped before the first update; nothing is trained yet"


def _record(folder: Path, engine: str, group: Group, error: Exception) -> None:
    """The first process of a group that fails writes; the others may only have lost that one."""
    if (group.rank and getattr(error, "on_all_ranks", False)) or (folder / FAILED).exists():
        return
    row = {
        "member": folder.parent.name,
        "fold": int(folder.name.removeprefix("fold_")),
        "error": type(error).__name__,
        "reason": reason(error),
        "left_out": False,
        "micro_batch": memory.remembered(folder) or None,
        "engine": engine,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    with suppress(OSError):  # of a disk that is full, too
        run_dir.write_yaml(folder / FAILED, row)
