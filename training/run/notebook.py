"""The progress of a fold in a notebook: one bar that stays, in place of a line an epoch."""

from __future__ import annotations

import warnings
from typing import Any

from rich.console import Console


def is_notebook() -> bool:
    """Whether output goes to a cell of Jupyter, Colab or the like."""
    return Console().is_jupyter


class NotebookBar:
    """A bar of tqdm over the updates of a fold, with the scores of its last epoch; a widget with ipywidgets."""

    def __init__(self, fold: int):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tqdm's advice to install ipywidgets
            from tqdm.auto import tqdm

        self.bar: Any = tqdm(desc=f"fold {fold}", unit="step", dynamic_ncols=True)

    def step(self, update: int, updates: int) -> None:
        """So many of all updates are done."""
        self.bar.total = updates
        self.bar.update(update - self.bar.n)

    def epoch(self, row: dict[str, float], epochs: int) -> None:
        """Show the scores of a finished epoch."""
        scores = f"val loss {row['log_loss']:.4f}, accuracy {row['accuracy']:.4f}, macro-F1 {row['macro_f1']:.4f}"
        self.bar.set_postfix_str(f"epoch {row['epoch']:.0f}/{epochs}, {scores}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()
