"""What is printed never ends a command: characters that a terminal or a log cannot take are shown as escapes."""

from __future__ import annotations

import io
import sys


def escape() -> None:
    """Have standard output and standard error write such characters as backslash escapes from now on.

    For commands, at their start: class names and paths are any text, and bytes of a file name need not be UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
