"""What reaches the terminal: Tandem's own lines, errors, and nothing that a library remarks.

Characters that a terminal or a log cannot take are shown as escapes, so that what is printed never ends a command.
"""

from __future__ import annotations

import faulthandler
import io
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, TextIO

LOG = "run.log"  # in the folder of a run or a campaign
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _State:
    """`log` is the stream of file descriptor 2 once it is diverted, `named` whether it has gone to a run's log,
    `terminal` the file descriptor of the terminal's standard error."""

    log: TextIO | None = None
    named = False
    terminal = 2


def escape() -> None:
    """Have standard output and standard error write such characters as backslash escapes from now on.

    For commands, at their start: class names and paths are any text, and bytes of a file name need not be UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def number(rank: int) -> None:
    """Begin each line of standard output and standard error with the rank of this process, one of several that write
    to the same place. That of rank 0 stays a terminal where it is one, for the progress bar."""
    if rank == 0 and sys.stdout.isatty():
        return
    sys.stdout, sys.stderr = (_Numbered(stream, f"[rank {rank}] ") for stream in (sys.stdout, sys.stderr))


class _Numbered(io.TextIOBase):
    """A stream that writes whole lines, with a prefix, and is no terminal."""

    def __init__(self, stream: TextIO, prefix: str):
        self._stream, self._prefix, self._begun = stream, prefix, ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        if lines:
            self._stream.write("".join(f"{self._prefix}{line}\n" for line in lines))
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()


def divert() -> None:
    """Keep what libraries write to standard error off the terminal: it goes to a temporary file, and to a run's log
    once `log_to` names one. `sys.stderr` still writes to the terminal; so do errors that a library logs.

    For a process's own command line, before any library is imported.
    """
    if sys.stderr is None:  # a process without standard error
        return
    terminal, encoding = os.dup(2), sys.stderr.encoding
    _State.terminal = terminal
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = open(terminal, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    faulthandler.enable(file=terminal)  # a crash of native code shows where, as its own message does not
    _State.log = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    logging.setLoggerClass(_LibraryLogger)
    errors = logging.StreamHandler(sys.stderr)
    errors.setLevel(logging.ERROR)
    logging.basicConfig(handlers=[logging.StreamHandler(_State.log), errors], format=_FORMAT, level=logging.WARNING)


def terminal() -> int:
    """The file descriptor of the terminal's standard error, for what must be written in a signal handler."""
    return _State.terminal


def log_to(folder: Path) -> None:
    """Append what libraries have written so far, and what they write from now on, to the folder's `run.log`; nothing
    where their output was not diverted, or has a file already."""
    if _State.log is None or _State.named:
        return
    _State.log.flush()
    before = os.pread(2, os.fstat(2).st_size, 0)
    with (folder / LOG).open("ab") as file:
        file.write(before)
        file.flush()
        os.dup2(file.fileno(), 2)
    _State.named = True


def log_warning(message: Warning | str, category: type[Warning], file: str, line: int, *_: Any) -> None:
    """Write a warning of Python's into the log."""
    logging.getLogger("py.warnings").warning(warnings.formatwarning(message, category, file, line).strip())


class _LibraryLogger(logging.Logger):
    """A logger whose handlers for the terminal show errors only; all else goes to the log."""

    def addHandler(self, hdlr: logging.Handler) -> None:
        """Add a handler; one for standard error is left the errors, and a second one writes all to the log."""
        if getattr(hdlr, "stream", None) is sys.stderr:
            hdlr.addFilter(lambda record: record.levelno >= logging.ERROR)
            log = logging.StreamHandler(_State.log)
            log.setFormatter(logging.Formatter(_FORMAT))
            log.addFilter(lambda _: not self.propagate)  # else the root's handler writes it
            super().addHandler(log)
        super().addHandler(hdlr)
