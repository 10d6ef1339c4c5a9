"""What every command shares: spelling of flags, errors in one line, Ctrl-C without a traceback, quiet libraries.

Nothing that takes time is imported here, so that an entry point is covered from its start.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from config import heap, streams
from config.errors import TandemError, TandemWarning
from config.program import removed_flags, version

TROUBLESHOOTING = "docs/guide/troubleshooting.md"
EXIT_CODES = {
    0: "done",
    1: "data, files, a missing framework, or a fault in Tandem (with a traceback)",
    2: "a wrong command line or wrong settings",
    3: "a campaign left folds out",
    4: "a converted file is outside its limits",
    75: "stopped by SIGUSR1, as a queue sends it before the time is up: start the same command again",
    130: "stopped by Ctrl-C (SIGINT)",
    141: "the reader of the output has gone, as in `... | head`",
    143: "stopped by SIGTERM",
}
_VERBOSE = "--verbose"
_BROKEN_PIPE = 141
# What a disk or a folder refuses, and what to do about it.
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make the folder writable, or choose another --out"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "name a folder, not a file"),  # EEXIST: a mkdir where a file is
    errno.EISDIR: "name a file, not a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def run(work: Callable[[list[str]], int], argv: Sequence[str] | None, prog: str) -> int:
    """Do `work` with the words of a command line and return the exit code.

    A `TandemError` becomes one line on standard error, `--verbose` adds its traceback. `argv` None is the process's own
    command line: then signals, warnings and what libraries write to standard error are handled, too.
    """
    is_process = argv is None
    words = [spelled(word) for word in (sys.argv[1:] if argv is None else argv)]
    verbose = _VERBOSE in words
    words = [word for word in words if word != _VERBOSE]
    if "--version" in words:
        print(version.line())
        return 0
    heap.retain_freed_memory()
    if is_process and not verbose:
        streams.divert()
    streams.escape()
    with _signals(is_process) as received, _warnings(is_process and not verbose):
        code = _done(work, words, prog, is_process, verbose, received)
    return 128 + received[0] if received and code == 128 + signal.SIGINT else code


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options that `run` takes out of every command line."""
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    parser.add_argument(_VERBOSE, action="store_true", help="show tracebacks of errors and warnings of libraries")


def spelled(word: str) -> str:
    """A flag as the parsers have it: dashes in a flag are underscores, but for the one of --no-SOMETHING."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word[2:].partition("=")
    return f"--{re.sub(r'^no_', 'no-', flag.replace('-', '_'))}{equals}{value}"


def anchor(error: type[TandemError]) -> str:
    """Where the troubleshooting page explains an error, or the error of `config.errors` that it derives from."""
    kind = next(kind for kind in error.__mro__ if kind.__module__ == TandemError.__module__)
    return f"{TROUBLESHOOTING}#{kind.__name__.lower()}"


def _done(
    work: Callable[[list[str]], int], words: list[str], prog: str, is_process: bool, verbose: bool, received: list[int]
) -> int:
    try:
        removed_flags.refuse(words, prog)
        return work(words)
    except TandemError as error:
        if verbose:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        if verbose:
            print(f"see {anchor(type(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _stopped()
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - what is left to print has no reader
        return _BROKEN_PIPE
    except BaseException as error:
        if received:  # a library's own answer to the signal, such as a panic of one in Rust, or a compiler's
            return _stopped()
        if not isinstance(error, Exception):  # argparse's SystemExit
            raise
        if isinstance(error, OSError) and error.errno in _REMEDIES and not verbose:
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
            print(f"error: {what}; {_REMEDIES[error.errno]}, then start it again", file=sys.stderr)
            return 1
        if not is_process:
            raise
        traceback.print_exc()
        print(f"this is a fault in Tandem: please report it, as {TROUBLESHOOTING}#report-a-fault says", file=sys.stderr)
        return 1


def _stopped() -> int:
    print("stopped", file=sys.stderr)
    return 128 + signal.SIGINT


@contextmanager
def _signals(is_process: bool) -> Iterator[list[int]]:
    """SIGINT and SIGTERM as `KeyboardInterrupt`, listed as they come; a second one ends the process at once."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(128 + number)
        raise KeyboardInterrupt

    handled = (signal.SIGINT, signal.SIGTERM) if is_process else ()
    for number in handled:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as of a job in the background
            signal.signal(number, note)
    try:
        yield received
    finally:
        for number in handled:  # the interpreter's own end must not be a traceback
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _warnings(to_log: bool) -> Iterator[None]:
    """Tandem's own warnings as lines; those of libraries into the log, or as Python shows them."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *location: Any, **more: Any) -> None:
        if issubclass(category, TandemWarning):
            print(f"warning: {message}", file=sys.stderr)
        elif to_log:
            streams.log_warning(message, category, *location)
        else:
            usual(message, category, *location, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
