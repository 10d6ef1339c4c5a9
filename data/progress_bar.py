"""A bar for work on many images. That of the training is `training.run.progress`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SOON = 200  # images from which a bar is drawn


@contextmanager
def bar(what: str, images: int, soon: int = _SOON) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's standard error for `soon` images or more; told how many are done."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = images < soon or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as progress:
        task = progress.add_task(what, total=images)
        yield lambda done: progress.update(task, completed=done)
