"""The training loop and everything around a run. All decisions are made here; the engines apply them.

`train` and `load_run` are the ways in from Python, `python -m training` and `train_ENGINE.py` the command lines. No
framework is imported here, and nothing else that is slow before it is used.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.api import Predictions, Run, train

__all__ = ["Predictions", "Run", "load_run", "train"]


def load_run(folder: str | os.PathLike[str]) -> Run:
    """The finished run in `folder`, as `train` returned it; `CheckpointError` where there is none."""
    from training.api import Run

    return Run.open(folder)


def __getattr__(name: str) -> Any:
    if name in ("Predictions", "Run", "train"):
        from training import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
