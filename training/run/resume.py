"""A run that is resumed with other settings: what is refused, what is left to train, and what is rewritten.

With more epochs a finished run is resumed from its last checkpoint. `config.yaml` is replaced only when something will
be trained with the new settings; the old file stays as `config_N.yaml`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from config import load
from config.errors import ConfigError
from config.schema import Settings
from config.text import counted
from training.loop import checkpoint
from training.loop.state import TrainerState
from training.run import run_dir


def refusal(folder: Path, settings: Settings, numbers: Sequence[int]) -> str:
    """Why the run in `folder` refuses other settings: nothing is left to train with them in the folds `numbers`.
    "" where they do not differ, or where something is left.

    Raises `ConfigError` where a fold has trained more epochs than `settings` allow.
    """
    changed = _changed(folder, settings)
    if not changed:
        return ""
    for path in sorted(folder.glob("fold_*/")):
        loop = _last(path)
        if loop and settings.train.epochs < loop.epoch:
            raise ConfigError(
                f"{path}: has trained {counted(loop.epoch, 'epoch')}, more than train.epochs {settings.train.epochs}; "
                f"give {loop.epoch} or more, or start a new run with --resume never"
            )
    wanted = [folder / f"fold_{k}" for k in numbers]
    if any(_unfinished(path, settings) for path in wanted):
        return ""
    return f"{folder}: {_nothing_left(wanted, settings)} ({'; '.join(changed[:5])})"


def apply(folder: Path, settings: Settings, held: Sequence[Path] = ()) -> None:
    """Make `settings` those of the run in `folder`, if they differ. A finished fold that has more epochs to train with
    them is no longer finished.

    `held` are the folds whose locks the caller holds. Raises `CheckpointError` where another process is training one
    of the others.
    """
    changed = _changed(folder, settings)
    if not changed:
        return
    folds = sorted(folder.glob("fold_*/"))
    with ExitStack() as locks:
        for path in folds:
            if path not in held:
                locks.enter_context(run_dir.locked(path))
        for path in folds:
            if _unfinished(path, settings):
                for file in (path / run_dir.RESULT, *path.glob("oof_*.npz")):  # the latter with TTA views
                    file.unlink(missing_ok=True)
        print(f"{folder} continues with other settings: {'; '.join(changed)}")
        with run_dir.run_lock(folder):
            (folder / run_dir.FINISHED).unlink(missing_ok=True)
            run_dir.replace_settings(folder / run_dir.CONFIG, load.to_yaml(settings))


def _changed(folder: Path, settings: Settings) -> list[str]:
    file = folder / run_dir.CONFIG
    return run_dir.differences(load.read(file), settings, run_dir.PLACES) if file.exists() else []


def _last(path: Path) -> TrainerState | None:
    """Where a fold's newest checkpoint stands; None where there is none."""
    steps = checkpoint.steps(path)
    return TrainerState.from_json(checkpoint.read_state(steps[-1])["loop"]) if steps else None


def _unfinished(path: Path, settings: Settings) -> bool:
    """Whether the fold has something left to train with these settings."""
    if not (path / run_dir.RESULT).exists():
        return True
    loop = _last(path)
    if loop is None or loop.epoch >= settings.train.epochs:
        return False
    return not replace(loop.stopping, patience=settings.stopping.patience).stop


def _nothing_left(folds: Sequence[Path], settings: Settings) -> str:
    """Why nothing is left to train, and what to do."""
    loops = [loop for path in folds if (loop := _last(path))]
    if not loops:
        return "its checkpoints are gone, so that it cannot be trained with other settings; start a new run"
    trained = max(loop.epoch for loop in loops)
    remedy = "start a new run with --resume never"
    if trained < settings.train.epochs:
        return f"stopped early after {counted(trained, 'epoch')}; raise stopping.patience or set it to 0, or {remedy}"
    return f"is finished, other settings would train nothing; raise train.epochs above {trained}, or {remedy}"
