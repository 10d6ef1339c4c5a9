"""The command line of both entry points: settings in, a run out, one line for each thing that a user can mend."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from config import heap, load, streams
from config.command import RunRequest
from config.errors import Interrupted, TandemError

# What a disk or a folder refuses, and what to do about it.
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "make the folder writable, or choose another --out",
    errno.EACCES: "make the folder writable, or choose another --out",
    errno.EPERM: "make the folder writable, or choose another --out",
}


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a request that the loop honours; a second SIGINT leaves at once."""

    def __init__(self) -> None:
        self.received = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.received != 0

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number
        # print() is not safe here: the signal may have come in the middle of another one.
        os.write(2, b"\nstopping after this step; press Ctrl-C again to leave at once\n")


def main(engine: str, argv: Sequence[str] | None = None) -> int:
    """Run `train_ENGINE.py`; returns the exit code: 0, 1 data and the like, 2 settings, 3 a campaign that had to leave
    folds out, 130 and 143 interrupted."""
    prog = f"train_{engine}.py"
    heap.retain_freed_memory()
    streams.escape()
    try:
        command = load.parse_command(sys.argv[1:] if argv is None else argv, prog=prog)
        settings = None if command.wish.mode else command.settings
        import backends  # after --help, which must not wait for these imports
        from training.run import train_run

        backends.require(engine)
        if command.wish.dry_run:
            return _plan(engine, command)
        stop = StopSignal()

        try:
            if settings is None:
                return _campaign(engine, command, stop)
            folder = train_run.run_all(engine, settings, stop)
        except Interrupted as interrupted:
            print(
                f"stopped; everything is saved. Go on with: {_again(prog, command.wish)} --resume {interrupted.folder}"
            )
            return 128 + stop.received
    except TandemError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        print(f"error: {what}; {_REMEDIES[error.errno]}, then start it again", file=sys.stderr)
        return 1
    print(f"finished: {folder / 'report.html'}")
    return 0


def _plan(engine: str, command: load.Command) -> int:
    from training.campaign import plan

    try:
        print(*plan.lines(engine, command), sep="\n")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _again(prog: str, wish: RunRequest) -> str:
    """The command that goes on with the same wish, but for the folder; a single run knows its folds itself."""
    words = [f"--mode {wish.mode}"] * bool(wish.mode) + ["--tune"] * wish.tune
    if wish.mode:
        words += [f"--member {wish.member}"] * bool(wish.member) + [f"--fold {wish.fold}"] * (wish.fold is not None)
    return " ".join(["python", prog, *words])


def _campaign(engine: str, command: load.Command, stop: StopSignal) -> int:
    from training.campaign import members, pipeline

    campaign = members.begin(engine, command.members, stop, command.wish.mode in pipeline.START_MODES)
    print(f"campaign: {campaign.folder}")
    return pipeline.work(campaign, command.wish)
