"""Checkpoints on disk: written to a temporary folder and renamed, listed, verified, pruned.

A checkpoint is a folder of `model.safetensors`, `ema.safetensors` and `optimizer.safetensors` (canonical arrays),
`state.json` (where the run stood) and `manifest.json` (SHA-256 of each). The loop decides when; this file only how.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError

from backends.contract import TrainState, Weights
from config import load as settings_files
from config.errors import CheckpointError
from config.schema import Settings
from models import manifest
from models.card import CARD_KEY, Card
from models.weights import loading

BEST = "best"
SOUP = "soup"
_STEP = "step_"
_PARTIAL = ".partial"
_NUMBERS = ("step", "calls", "frozen_steps", "loss_scale", "scale_age")  # of TrainState, in state.json
_PREVIOUS = ".previous"


def save(folder: Path, card: Card, state: TrainState, loop: dict[str, Any], arrays: Weights | None = None) -> Path:
    """Write the whole state as `folder/step_NNNNNNNN` and return that path.

    `loop` is what the loop keeps in plain JSON values, `arrays` what it keeps in arrays, as `loop.safetensors`.
    """
    path = folder / f"{_STEP}{state.calls:08d}"
    files = {"model": state.weights, "optimizer": state.optimizer}
    if state.ema is not None:
        files["ema"] = state.ema
    if arrays:
        files["loop"] = arrays
    _publish(path, card, files, {**loop, **{name: getattr(state, name) for name in _NUMBERS}})
    return path


def save_best(folder: Path, card: Card, chosen: Weights, loop: dict[str, Any], name: str = BEST) -> None:
    """Write the weights that scored best as `folder/best` (or another name), replacing an earlier one."""
    _publish(folder / name, card, {"model": chosen}, loop)


def load(path: Path) -> tuple[TrainState, dict[str, Any]]:
    """The training state and the loop's state of one whole checkpoint; `CheckpointError` when it is not whole."""
    manifest.verify(path)
    loop = read_state(path)
    model, _ = loading.read(path / "model.safetensors")
    ema = loading.read(path / "ema.safetensors")[0] if (path / "ema.safetensors").exists() else None
    optimizer, _ = loading.read(path / "optimizer.safetensors")
    numbers = {name: loop[name] for name in _NUMBERS if name in loop}
    return TrainState(model, ema, optimizer, **numbers), loop


def load_arrays(path: Path) -> Weights:
    """What the loop kept in arrays, by name; empty where it kept none."""
    file = path / "loop.safetensors"
    return loading.read(file)[0] if file.exists() else {}


def read_state(path: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint."""
    try:
        loop = json.loads((path / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: state.json is unreadable ({error}); use an earlier checkpoint") from error
    if not isinstance(loop, dict):
        raise CheckpointError(f"{path}: state.json is not a mapping; use an earlier checkpoint")
    return loop


def config(path: Path) -> Settings | None:
    """The settings that a checkpoint was trained with; None where it is damaged or holds none."""
    try:
        return settings_files.of_checkpoint(read_state(path)["config"])
    except (CheckpointError, KeyError, TypeError, ValidationError):
        return None


def newest(folder: Path, say: Callable[[str], None] = print) -> Path | None:
    """The newest whole checkpoint, by the number of updates and not by any clock.

    A damaged one is set aside as `.corrupt`, and `say` is told. When there were checkpoints and none is whole, that is
    a `CheckpointError`, never a silent fresh start.
    """
    recover(folder)
    saved = steps(folder)
    for path in reversed(saved):
        fault = damage(path)
        if not fault:
            return path
        say(f"{fault}; it is set aside as {set_aside(path)}")
    if saved or any(folder.glob(f"{_STEP}*.corrupt*")):
        raise CheckpointError(f"{folder}: no whole checkpoint is left; start afresh with --resume never")
    return None


def damage(path: Path) -> str:
    """What is wrong with the files of a checkpoint, "" where it is whole."""
    try:
        manifest.verify(path)
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or path}: cannot be read ({error.strerror})"
    return ""


def steps(folder: Path) -> list[Path]:
    """All step checkpoints, oldest first, whole or not."""
    return sorted(p for p in folder.glob(f"{_STEP}*") if p.is_dir() and p.name.removeprefix(_STEP).isdigit())


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint so that it is never taken for a good one."""
    targets = (path.with_name(f"{path.name}.corrupt{number if number > 1 else ''}") for number in itertools.count(1))
    return path.rename(next(target for target in targets if not target.exists()))


def epoch_ends(folder: Path) -> list[Path]:
    """The step checkpoints at the end of an epoch, oldest first: those that an uninterrupted run has too."""
    return [path for path in steps(folder) if _ends_epoch(path)]


def _ends_epoch(path: Path) -> bool:
    try:
        return bool(read_state(path)["loop"]["batch"] == 0)
    except (CheckpointError, LookupError, TypeError):
        return False


def prune(folder: Path, keep: int, ends: int = 0) -> list[Path]:
    """Remove all but the last `keep` step checkpoints and the last `ends` that end an epoch, and what a killed process
    left; returns what was removed."""
    last = {*steps(folder)[-keep:], *(epoch_ends(folder)[-ends:] if ends else ())}
    gone = [path for path in steps(folder) if path not in last] if keep > 0 else []
    gone += [p for p in folder.glob(f"*{_PARTIAL}") if p.is_dir()]
    for path in gone:
        shutil.rmtree(path)
    return gone


def recover(folder: Path) -> None:
    """Finish replacements of a checkpoint by one of the same name that a crash interrupted."""
    for previous in folder.glob(f"*{_PREVIOUS}"):
        path = previous.with_name(previous.name.removesuffix(_PREVIOUS))
        if path.exists():
            shutil.rmtree(previous)
        else:
            previous.rename(path)


def _publish(path: Path, card: Card, files: dict[str, Weights], loop: dict[str, Any]) -> None:
    """Write everything into `PATH.partial`, sync it to disk, and rename it into place."""
    partial = path.with_name(path.name + _PARTIAL)
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        for name, arrays in files.items():
            loading.write(partial / f"{name}.safetensors", arrays, {CARD_KEY: card.to_json()})
        (partial / "state.json").write_text(json.dumps(loop, indent=1, sort_keys=True))
        manifest.write(partial)
        _sync([*partial.iterdir(), partial])
        previous = path.with_name(path.name + _PREVIOUS)
        if path.exists():
            path.rename(previous)
        partial.rename(path)
        _sync([path.parent])
        if previous.exists():
            shutil.rmtree(previous)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        need = max(sum(a.nbytes for arrays in files.values() for a in arrays.values()) / 2**20, 1)
        raise CheckpointError(
            f"{path}: could not be saved ({cause}); it needs {need:.0f} MiB free and a folder that may be written; "
            "then start it again"
        ) from error


def _sync(paths: Iterable[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
