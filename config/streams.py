"""What is printed never ends a command: characters that a terminal or a log cannot take are shown as escapes."""

from __future__ import annotations

import io
import sys
from typing import TextIO


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
