"""What the ranks of a group print: rank 0 on the terminal, each other one into a file in the run's folder."""

from __future__ import annotations

import io
import os
import socket
import sys
import traceback
from pathlib import Path
from types import TracebackType

from config.errors import GroupLost, Interrupted, TandemError
from config.launch import Launch


class RankLog:
    """A context in which what a rank other than 0 prints goes into `RUN/rank_R.log`; until `open` says the folder it is
    kept in memory. An error that no other rank raises is also told on the terminal.

    A process that fails ends at once: a device may wait for the others forever.
    """

    def __init__(self, launch: Launch):
        self._launch, self._kept = launch, io.StringIO()
        self._terminal = sys.stdout, sys.stderr
        self._where = ""

    def __enter__(self) -> RankLog:
        if self._launch.rank:
            sys.stdout = sys.stderr = self._kept
        return self

    def open(self, folder: Path) -> None:
        """Append to the file in this folder from now on."""
        if self._launch.rank:
            path = folder / f"rank_{self._launch.rank}.log"
            stream = path.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
            stream.write(self._kept.getvalue())
            sys.stdout = sys.stderr = stream
            self._where = f" (see {path})"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, TandemError | Interrupted):
            traceback.print_exception(error)
        elif error is not None and self._launch.rank:
            print(f"error: {error}" if isinstance(error, TandemError) else "stopped")
        sys.stdout.flush()
        sys.stdout, sys.stderr = self._terminal
        if error is None or (self._launch.rank == 0 and isinstance(error, TandemError | Interrupted)):
            return
        shared = isinstance(error, GroupLost | Interrupted) or (isinstance(error, TandemError) and error.told)
        if self._launch.rank and not shared:
            print(f"error: rank {self._launch.rank} on {socket.gethostname()}: {error}{self._where}", file=sys.stderr)
        os._exit(error.exit_code if isinstance(error, TandemError) else 143 if isinstance(error, Interrupted) else 1)
