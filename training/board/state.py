"""The state of a fold and of a run, by the files and the lock notes in their folders. No lock is taken."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import psutil

# A fold waits while a living process holds it and trains another one, or has not come to its first update.
State = Literal["training", "waiting", "finished", "failed", "interrupted", "not started"]
_QUIET = 1800.0  # seconds without a change after which a process of another host counts as ended
_CLOCKS = 5.0  # seconds by which the clocks of files and of processes may differ


def of_run(finished: bool, folds: Sequence[State]) -> State:
    """The state of a run whose summary is there or not, by the states of its folds; of a campaign, by its members."""
    if "training" in folds or "waiting" in folds:
        return "training"
    if finished:
        return "finished"
    begun = any(state != "not started" for state in folds)
    return "failed" if "failed" in folds else "interrupted" if begun else "not started"


def lives(note: Path) -> bool:
    """Whether the process that wrote the lock note `note` still runs: by its number on this host, on others by when a
    file beside the note has last changed."""
    owner = re.fullmatch(r"process (\d+) on (.+)", _owner(note))
    if not owner:
        return False
    if owner[2] != socket.gethostname():
        return time.time() - max(path.stat().st_mtime for path in note.parent.iterdir()) < _QUIET
    try:
        return psutil.Process(int(owner[1])).create_time() < note.stat().st_mtime + _CLOCKS
    except (psutil.Error, OSError):  # ended, or ends now
        return False


def _owner(note: Path) -> str:
    """The text of a lock note, or the `owner` in a `progress.json`; "" where it is gone."""
    try:
        text = note.read_text()
        progress = json.loads(text) if note.suffix == ".json" else {"owner": text}
    except (OSError, ValueError):
        return ""
    return str(progress.get("owner", "")) if isinstance(progress, dict) else ""
