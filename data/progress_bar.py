"""Bars on a terminal and in a notebook. What a training shows in them is in `training.run.progress`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_MIN_IMAGES = 200  # fewer are done before a bar is of use


@contextmanager
def bar(what: str, images: int, minimum: int = _MIN_IMAGES) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's standard error, or in a notebook; yields a function that takes how many are done."""
    if images >= minimum and is_notebook():
        notebook = NotebookBar(what, "image")
        try:
            yield lambda done: notebook.update(done, images)
        finally:
            notebook.close()
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = images < minimum or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as progress:
        task = progress.add_task(what, total=images)
        yield lambda done: progress.update(task, completed=done)


def is_notebook() -> bool:
    """Whether output goes to a cell of Jupyter, Colab or the like."""
    return Console().is_jupyter


class NotebookBar:
    """A bar of tqdm that stays in its cell: a widget where ipywidgets is installed, else a line."""

    def __init__(self, what: str, unit: str):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tqdm's advice to install ipywidgets
            from tqdm.auto import tqdm

        self._bar: Any = tqdm(desc=what, unit=unit, dynamic_ncols=True)

    def update(self, done: int, total: int) -> None:
        """Set how many of `total` are done."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def note(self, text: str) -> None:
        """Show a text behind the bar."""
        self._bar.set_postfix_str(text)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
