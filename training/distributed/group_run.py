"""Logs and status of the processes of a launcher that train a run together.

Rank 0 prints on the terminal, each other one into `rank_R.log` in the run's folder. `status.json` there tells how the
run ended, as the exit code of mlx.launch does not.
"""

from __future__ import annotations

import io
import json
import os
import socket
import sys
import traceback
from pathlib import Path

from config.errors import Diverged, GroupLost, Interrupted, TandemError, reason
from config.launch import Launch
from config.places import atomic_write

STATUS = "status.json"


class GroupRun:
    """A context around the training of one process of a group; `open` passes it the run's folder.

    Until then, what a rank other than 0 prints is held in memory. An error that no other rank raises is also printed on
    the terminal. A process that fails ends at once: a device may wait for the others forever.

    The `state` in `status.json` is "training", "finished", "interrupted" or "failed", then with the `error` of the
    first process that noted one. A run whose processes were all killed is left "training".
    """

    joins = False  # whether this process is, was, or was to be one of a group

    def __init__(self, launch: Launch):
        GroupRun.joins = True
        self._launch, self._buffer = launch, io.StringIO()
        self._terminal = sys.stdout, sys.stderr
        self._folder: Path | None = None
        self._where = ""

    def __enter__(self) -> GroupRun:
        if self._launch.rank:
            sys.stdout = sys.stderr = self._buffer
        return self

    def open(self, folder: Path) -> None:
        """Write into this folder from now on."""
        self._folder = folder
        if self._launch.rank == 0:
            self._write("training")
            return
        path = folder / f"rank_{self._launch.rank}.log"
        stream = path.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
        stream.write(self._buffer.getvalue())
        sys.stdout = sys.stderr = stream
        self._where = f" (see {path})"

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        known, first = isinstance(error, TandemError | Interrupted), self._launch.rank == 0
        if error is not None and not isinstance(error, Interrupted):
            self._fail(error)
        elif first:
            self._write("interrupted" if error else "finished")
        if error is not None and not known:
            traceback.print_exception(error)
        elif error is not None and not first:
            print(f"error: {error}" if isinstance(error, TandemError) else "stopped")
        sys.stdout.flush()
        sys.stdout, sys.stderr = self._terminal
        if error is None or (first and known):
            return
        if not (first or _is_of_all(error) or isinstance(error, GroupLost | Interrupted)):
            print(f"error: {self._here()}: {error}{self._where}", file=sys.stderr)
        os._exit(error.exit_code if isinstance(error, TandemError) else 143 if isinstance(error, Interrupted) else 1)

    def _fail(self, error: BaseException) -> None:
        """Note an error, unless another process did: this one may only have lost that one."""
        path = self._folder / STATUS if self._folder else None
        if path is None or (path.exists() and json.loads(path.read_text())["state"] != "training"):
            return
        text = reason(error)
        self._write("failed", text if _is_of_all(error) else f"{self._here()}: {text}")

    def _write(self, state: str, error: str = "") -> None:
        if self._folder:
            status = {"state": state, "processes": self._launch.world_size, "error": error}
            atomic_write(self._folder / STATUS, json.dumps(status, indent=1).encode() + b"\n")

    def _here(self) -> str:
        return f"rank {self._launch.rank} on {socket.gethostname()}"


def _is_of_all(error: BaseException) -> bool:
    """Whether every process raises this error: what diverges is the network that all have."""
    return isinstance(error, Diverged) or getattr(error, "on_all_ranks", False)
