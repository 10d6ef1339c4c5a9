"""The command line of both entry points: settings in, a run out, one line for each thing that a user can mend."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from config import load
from config.errors import TandemError


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
        print("\nstopping after this step; press Ctrl-C again to leave at once", file=sys.stderr)


def main(engine: str, argv: Sequence[str] | None = None) -> int:
    """Run `train_ENGINE.py`; returns the exit code (0, 1 data and the like, 2 settings, 130/143 interrupted)."""
    prog = f"train_{engine}.py"
    try:
        settings = load.parse(sys.argv[1:] if argv is None else argv, prog=prog)
        from training import campaign  # after --help, which must not wait for these imports

        stop = StopSignal()
        try:
            folder = campaign.run_all(engine, settings, stop)
        except campaign.Interrupted as interrupted:
            print(f"stopped; everything is saved. Go on with: python {prog} --resume {interrupted.folder}")
            return 128 + stop.received
    except TandemError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"finished: {folder / 'report.html'}")
    return 0
