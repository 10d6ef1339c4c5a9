"""What processes do that tests of campaigns start: a command of the tests' own engine, to its end or not."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import tests.numpy_engine  # noqa: F401 - which registers it
from training import cli
from training.loop import checkpoint


def works(words: list[str]) -> None:
    """Run a command line to its end."""
    sys.exit(cli.main("numpy", words))


def stands_still(words: list[str]) -> None:
    """Never come to the end of the second save."""
    whole = checkpoint.save

    def save(place: Path, *more: Any) -> Path:
        if checkpoint.steps(place):
            signal.pause()
        return whole(place, *more)

    checkpoint.save = save
    works(words)
