"""`status.json` in the folder of a run that several processes train: how it ended, as the exit code of mlx.launch does
not tell.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import TracebackType

from config.errors import Interrupted
from config.launch import Launch
from data import csvfile
from training.run import failures

STATUS = "status.json"


class RunStatus:
    """A context that keeps `status.json`: `state` is "training", "finished", "interrupted" or "failed", then with the
    `error` of the first process that noted one. A run whose processes were all killed is left "training"."""

    def __init__(self, launch: Launch):
        self._launch = launch
        self._path: Path | None = None

    def __enter__(self) -> RunStatus:
        return self

    def open(self, folder: Path) -> None:
        """Begin, in this folder."""
        self._path = folder / STATUS
        if self._launch.rank == 0:
            self._write("training")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, Interrupted):
            self._fail(error)
        elif self._launch.rank == 0:
            self._write("interrupted" if error else "finished")

    def _fail(self, error: BaseException) -> None:
        """Note an error, unless another process did: this one may only have lost that one."""
        if self._path is None or (self._path.exists() and json.loads(self._path.read_text())["state"] != "training"):
            return
        text = failures.reason(error)
        if not getattr(error, "told", False):
            text = f"rank {self._launch.rank} on {socket.gethostname()}: {text}"
        self._write("failed", text)

    def _write(self, state: str, error: str = "") -> None:
        if self._path is not None:
            status = {"state": state, "processes": self._launch.world_size, "error": error}
            csvfile.replace(self._path, json.dumps(status, indent=1).encode() + b"\n")
