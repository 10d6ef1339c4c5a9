"""The folder of a run: resumed or made, locked, described. `train_run` trains in it."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import yaml
from filelock import FileLock, Timeout

from config import load
from config.errors import CheckpointError, ConfigError
from config.places import atomic_write
from config.schema import Settings
from config.text import flat
from training.loop import checkpoint

CONFIG = load.RUN
FINISHED = "fold_results.yaml"
RESULT = "result.yaml"  # of a fold that is finished
PROGRESS = "progress.json"  # of a fold, while it trains
LOCK_OWNER = ".lock.owner"  # who works in a locked folder, for people and the board
# Settings that say where, how fast and in which portions a run works, not what comes out of it.
_CIRCUMSTANCES = (
    "auto_hours",
    "resume",
    "resume_anyway",
    "out",
    "name",
    "checkpoint",
    "track",
    "data.workers",
    "data.processes",
    "data.cache_dir",
    "data.shard_cache_gb",
    "data.on_bad_test_image",
    "train.compile",
    "train.compile_mode",
    "profile",
    "folds.train",
    "tune",
    "ensemble",
)
# Settings that another machine may have to change; `folds.csv` says whether the images are the same.
PLACES = ("data.root", "folds.file", "folds.groups")
_WAIT = 60.0  # seconds for what another process does to the shared files of a run
_PACKAGES = ("torch", "timm", "mlx", "numpy", "opencv-python-headless", "scikit-learn", "safetensors")


def folder(settings: Settings, engine: str) -> Path:
    """The folder to work in, with `config.yaml` inside: resumed as `settings.resume` says, or fresh.

    `auto` resumes the newest run of this engine with the same settings, finished or not; `never` always makes a new
    folder; a path resumes that run, on either engine. Nothing is ever overwritten: a name that another run has is a
    `ConfigError`. Runs are numbered, so that no clock decides which is the newest.
    """
    resumed = existing(settings, engine)
    if resumed:
        return resumed
    path = new(settings, engine)
    _refuse_campaign(path)
    if begin(path, CONFIG, load.to_yaml(settings), settings, lambda: changes(path, settings, engine)):
        return path
    return folder(settings, engine)  # another process has just made it


def begin(path: Path, file: str, text: str, settings: Settings, changes: Callable[[], list[str]]) -> bool:
    """Make the folder of a run or a campaign, with its settings as `text` in `file`; whether this process made it.

    `ConfigError` where it is another one's: its name was given, and it is not to be resumed or has the `changes`.
    """
    if _make(path, file, text):
        return True
    changed = changes() if settings.name else []
    if settings.name and (settings.resume == "never" or changed):
        what = f"another run has this name{' (' * bool(changed)}{'; '.join(changed[:3])}{')' * bool(changed)}"
        raise ConfigError(f"{path}: {what}; choose another --name, or go on with it by --resume {path}")
    return False


def _make(path: Path, file: str, text: str) -> bool:
    """Make a folder with its settings; whether it was not there yet."""
    path.mkdir(parents=True, exist_ok=True)
    with run_lock(path):
        fresh = not any((path / name).exists() for name in (load.CAMPAIGN, CONFIG))
        if fresh:
            atomic_write(path / file, text)
    return fresh


def existing(settings: Settings, engine: str, quiet: bool = False) -> Path | None:
    """The run that `settings.resume` selects, None where a new one is made; writes nothing. Errors as `folder`.

    Unless `quiet`, it prints how the newest run of the same data and model differs where none is the same.
    """
    if settings.resume not in ("auto", "never"):
        return _resumed(Path(settings.resume), settings)
    other = ""
    for path in newest_first(settings, CONFIG) if settings.resume == "auto" else ():
        try:
            if not changes(path, settings, engine):
                return path
            begun = load.read(path / CONFIG)
        except ConfigError as error:
            if not quiet:
                print(f"{path} is passed over: {error}", file=sys.stderr)
            continue
        if (begun.data.root, begun.model) == (settings.data.root, settings.model) and _engine_of(path) == engine:
            other = other or f"a new run, since {path} differs: {'; '.join(differences(begun, settings)[:3])}"
    if other and not settings.name and not quiet:
        print(other)
    return None


def new(settings: Settings, engine: str) -> Path:
    """The folder that a new run gets."""
    if settings.name:
        return settings.out / settings.name
    model = re.sub(r"[^\w.-]+", "-", settings.model)
    size, augment = settings.data.image_size, settings.augment.level
    return settings.out / f"{next_number(settings):04d}_{model}_{size}px_{settings.optim.name}_{augment}_{engine}"


def newest_first(settings: Settings, file: str) -> list[Path]:
    """The folders with such a file that the settings may mean, by `name` or all in `out`; the highest number first."""
    runs = [path.parent for path in settings.out.glob(f"{settings.name or '*'}/{file}")]
    return sorted(runs, key=lambda run: (number_of(run), run.name), reverse=True)


def next_number(settings: Settings) -> int:
    """The number of the next run or campaign in `out`."""
    return 1 + max((number_of(path) for path in settings.out.glob("*")), default=0)


def changes(path: Path, settings: Settings, engine: str) -> list[str]:
    """How the run in `path` differs, in its engine and its settings, one entry each; empty where it is the same."""
    begun = _engine_of(path) or engine
    other = [f"engine: {begun}, now {engine}"] if begun != engine else []
    return [*other, *differences(load.read(path / CONFIG), settings)]


def _engine_of(path: Path) -> str:
    """The engine that began a run, "" where it never came to its first step."""
    file = path / "environment.json"
    return str(json.loads(file.read_text())[0]["engine"]) if file.exists() else ""


def differences(old: Settings, new: Settings, ignored: tuple[str, ...] = ()) -> list[str]:
    """The settings, as `NAME: OLD, now NEW`, that differ and change what a run computes; those `ignored` apart."""
    before, after = (dict(flat(settings.model_dump(mode="json"))) for settings in (old, new))
    if before["data.cache_gb"] and after["data.cache_gb"]:  # whether there is a cache decides, not how large it may be
        before["data.cache_gb"] = after["data.cache_gb"]
    return [
        f"{key}: {before.get(key)!r}, now {after.get(key)!r}"
        for key in {**before, **after}
        if before.get(key) != after.get(key) and decides(key, ignored)
    ]


def decides(key: str, ignored: tuple[str, ...] = ()) -> bool:
    """Whether a setting, by its dotted name, changes what a run computes; those `ignored` do not count."""
    passed = (*_CIRCUMSTANCES, *ignored)
    return key not in passed and key.partition(".")[0] not in passed


def check_unedited(path: Path, settings: Settings) -> None:
    """`ConfigError` when a fold of the run was trained so far with settings that are neither these nor those of an
    earlier `config_N.yaml`, which were replaced with the user's consent."""
    if settings.resume_anyway:
        return
    for fold in sorted(path.glob("fold_*")):
        for begun in [checkpoint.config(step) for step in checkpoint.steps(fold)[-1:]]:
            changed = differences(begun, settings, PLACES) if begun else []
            if begun and changed and not any(not differences(begun, old, PLACES) for old in _replaced(path)):
                raise other_settings(path, f"{fold.name} was trained", changed)


def _replaced(path: Path) -> Iterator[Settings]:
    """The settings that a run had before; files that can no longer be read are passed over."""
    for file in sorted(path.glob("config_[0-9]*.yaml")):
        with suppress(ConfigError):
            yield load.read(file)


def owner() -> str:
    """This process, as lock files name it."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a folder, such as a fold's, for this process; the lock ends with the process, however it ends."""
    lock, note = FileLock(path / ".lock"), path / LOCK_OWNER
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = note.read_text() if note.exists() else "another process"
        raise CheckpointError(
            f"{path}: {who} is working in this folder; wait for it, stop it, or train other folds (--folds.train)"
        ) from None
    try:
        note.write_text(owner())
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


@contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Lock the files that all folds of a run share, after waiting for another process that writes them."""
    try:
        with FileLock(path / ".lock", timeout=_WAIT):
            yield
    except Timeout:
        raise CheckpointError(f"{path}: another process has held its files for {_WAIT:.0f} s; stop it") from None


def write_environment(path: Path, engine: str, session: dict[str, Any]) -> None:
    """Append the machine, versions and command of this start of the run to `environment.json`."""
    packages = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    interactive = sys.argv[0] == "" or "kernel" in Path(sys.argv[0]).name  # a notebook's command starts its kernel
    start = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": f"train_{engine}.py --config {path / CONFIG}" if interactive else " ".join(sys.argv),
        "engine": engine,
        "session": session,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "packages": packages,
    }
    target = path / "environment.json"
    with run_lock(path):
        starts = json.loads(target.read_text()) if target.exists() else []
        atomic_write(target, json.dumps([*starts, start], indent=1))


def replace_settings(file: Path, text: str) -> None:
    """Replace the settings of a run or a campaign; the old file is renamed, to `config_1.yaml` or the like."""
    number = len(list(file.parent.glob(f"{file.stem}*{file.suffix}")))
    file.rename(file.with_stem(f"{file.stem}_{number}"))
    atomic_write(file, text)


def write_yaml(path: Path, value: Any) -> None:
    """Write plain values as YAML, atomically."""
    atomic_write(path, yaml.safe_dump(value, sort_keys=False))


def _refuse_campaign(path: Path) -> None:
    if (path / load.CAMPAIGN).exists():
        raise ConfigError(f"{path}: is a campaign; add --mode full, or train, fit, predict, to go on with it")


def _resumed(path: Path, settings: Settings) -> Path:
    _refuse_campaign(path)
    file = path / CONFIG
    if not file.exists():
        raise CheckpointError(f"{path}: no {CONFIG}, so this is no run folder; give --resume the folder of a run")
    changed = differences(load.read(file), settings, PLACES)
    if changed and not settings.resume_anyway:
        raise other_settings(path, "was begun", changed)
    return path


def create_or_resume(path: Path, settings: Settings) -> None:
    """Make `path` the folder of a run with these settings, or resume it; `ConfigError` where they differ.

    With `resume_anyway` they may differ: `resume.apply` then makes them the run's."""
    if not _make(path, CONFIG, load.to_yaml(settings)):
        _resumed(path, settings)
        check_unedited(path, settings)


def other_settings(path: Path, what: str, changed: list[str]) -> ConfigError:
    """The error for a folder whose settings were others; `what` says which part of it."""
    return ConfigError(
        f"{path}: {what} with other settings ({'; '.join(changed[:5])}); "
        "start it with the same ones, or add --resume_anyway true"
    )


def number_of(path: Path) -> int:
    """The number that the name of a run begins with, 0 where the user named it."""
    match = re.match(r"(\d{4,6})_", path.name)
    return int(match[1]) if match else 0
