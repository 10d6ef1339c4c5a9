"""`--profile N`: when the trace of N updates begins and ends. The engines write the traces."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from backends.contract import Session
from config.text import counted

FOLDER = "profile"
_WARM = 5  # updates before the trace, as the first ones compile and fill caches
_TABLE = "table.txt"  # what an engine writes for people, beside its trace


class Recorder:
    """The trace of `updates` updates in `folder`/profile; 0 is none. `left` are the updates before the training's end.

    Raises `BackendUnavailable` or `ConfigError` where the engine has no traces.
    """

    def __init__(self, updates: int, left: int, session: Session, folder: Path, say: Callable[[str], None]):
        self._folder, self._say = folder / FOLDER, say
        self._trace: AbstractContextManager[None] | None = session.profile(self._folder) if updates else None
        self._first = max(0, min(_WARM, left - updates))
        self._last, self._updates = self._first + updates, 0

    def before_update(self) -> None:
        """To be called before each update."""
        if self._trace is None:
            return
        if self._updates == self._first:
            self._trace.__enter__()
        if self._updates == self._last:
            self.close()
        self._updates += 1

    def close(self) -> None:
        """End a running trace, and print its path."""
        trace, self._trace = self._trace, None
        if trace is None:
            return
        if self._updates <= self._first:
            self._say(f"profile: no trace, as only {counted(self._updates, 'update was', 'updates were')} left")
            return
        trace.__exit__(None, None, None)
        table = self._folder / _TABLE
        self._say(f"profile of {counted(self._updates - self._first, 'update')}: {self._folder}")
        if table.exists():
            self._say(table.read_text())
