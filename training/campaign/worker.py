"""A worker: a process that knows nothing but a campaign's folder, and trains or searches what is left in it.

What that is stands in `request.yaml`, which each start of the campaign's own commands leaves. The list of work, and who
does what of it, are those of every process of a campaign: see `queue`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import backends
from config import load
from config.errors import CheckpointError
from training import cli
from training.campaign import members, pipeline


def run(folder: Path, engine: str, words: Sequence[str]) -> int:
    """Work in `folder` until nothing is left; the exit code, as of `train_ENGINE.py`.

    `engine` "" is the one that is installed. `words` are options of `train_ENGINE.py`, such as `--data.root` where the
    images lie elsewhere on this machine.
    """
    again = " ".join(
        ["python -m training worker --campaign", str(folder), *[f"--engine {engine}"] * bool(engine), *words]
    )
    code = cli.run(engine or backends.default(), lambda: _command(folder, words), lambda *_: again)
    if code in (0, pipeline.LEFT_OUT):
        print(f"{folder}: all that was asked for is done")
    return code


def _command(folder: Path, words: Sequence[str]) -> load.Command:
    if not (folder / load.CAMPAIGN).exists():
        raise CheckpointError(
            f"{folder}: no {load.CAMPAIGN}, so this is no campaign; give the folder that train_torch.py "
            "or train_mlx.py has made with --mode audit, tune, train or full"
        )
    wish = members.requested(folder)
    asked = ["--mode", wish.mode, *["--member", wish.member] * bool(wish.member), "--spread", "folds"]
    found = load.parse_command(["--resume", str(folder), *asked, *words], prog="python -m training worker")
    return replace(found, wish=replace(found.wish, tune=wish.tune))
