"""The folder of a run: found again or made, locked, described. What is trained in it stands in `campaign`."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from config import load
from config.errors import CheckpointError, ConfigError
from config.schema import Settings

FINISHED = "fold_results.yaml"
# Settings that say where and how fast a run works, not what comes out of it.
_CIRCUMSTANCES = {"resume", "resume_anyway", "out", "name"}
_PACKAGES = ("torch", "timm", "mlx", "numpy", "opencv-python-headless", "scikit-learn", "safetensors")


def folder(settings: Settings, engine: str) -> Path:
    """The folder to work in, with `config.yaml` inside: resumed as `settings.resume` says, or fresh.

    `auto` takes the newest run of this engine with the same settings, finished or not; `never` always makes a new
    folder; a path goes on with that run, on either engine. Nothing is ever overwritten: a name that is taken by another
    run is a `ConfigError`.
    """
    if settings.resume not in ("auto", "never"):
        return _resumed(Path(settings.resume), settings)
    if settings.resume == "auto":
        for path in sorted(settings.out.glob(f"{settings.name or '*'}/config.yaml"), reverse=True):
            if _engine_of(path.parent) in ("", engine) and not differences(load.read(path), settings):
                return path.parent
    path = settings.out / (settings.name or _name(settings, engine))
    if (path / "config.yaml").exists():
        raise ConfigError(
            f"{path}: another run has this name; choose another --name, or go on with it by --resume {path}"
        )
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(load.to_yaml(settings))
    return path


def _engine_of(path: Path) -> str:
    """The engine that began a run, "" where it never came to its first step."""
    file = path / "environment.json"
    return str(json.loads(file.read_text())[0]["engine"]) if file.exists() else ""


def differences(one: Settings, other: Settings) -> list[str]:
    """The settings, as `path: one, other`, that change what a run computes and differ."""
    return [
        f"{key}: {a!r}, now {b!r}"
        for (key, a), (_, b) in zip(
            _flat(one.model_dump(mode="json")), _flat(other.model_dump(mode="json")), strict=True
        )
        if a != b and key.partition(".")[0] not in _CIRCUMSTANCES and key != "data.workers"
    ]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a folder against a second process; the lock ends with the process, however it ends."""
    lock, owner = FileLock(path / ".lock"), path / ".lock.owner"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = owner.read_text() if owner.exists() else "another process"
        raise CheckpointError(f"{path}: {who} is working in this folder; wait for it, or stop it") from None
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def write_environment(path: Path, engine: str, session: dict[str, Any]) -> None:
    """Append what machine, versions and command this start of the run had to `environment.json`."""
    target = path / "environment.json"
    starts = json.loads(target.read_text()) if target.exists() else []
    starts.append(
        {
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": " ".join(sys.argv),
            "engine": engine,
            "session": session,
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cores": psutil.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        }
    )
    target.write_text(json.dumps(starts, indent=1))


def _resumed(path: Path, settings: Settings) -> Path:
    if not (path / "config.yaml").exists():
        raise CheckpointError(f"{path}: no config.yaml, so this is no run folder; give --resume the folder of a run")
    changed = differences(load.read(path / "config.yaml"), settings)
    if changed and not settings.resume_anyway:
        raise ConfigError(
            f"{path} was begun with other settings ({'; '.join(changed[:5])}); "
            "start it with the same ones, or add --resume_anyway true"
        )
    return path


def _name(settings: Settings, engine: str) -> str:
    stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
    model = re.sub(r"[^\w.-]+", "-", settings.model)
    return f"{stamp}_{model}_{settings.data.image_size}px_{settings.optim.name}_{settings.augment.level}_{engine}"


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for key in sorted(value) for pair in _flat(value[key], f"{prefix}.{key}" if prefix else str(key))]
    return [(prefix, value)]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
