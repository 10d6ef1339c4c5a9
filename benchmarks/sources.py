"""What the benchmarks share: photographs from a tar or a folder, and what a figure was taken on."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tarfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "photos.tar"


def photographs(data: Path, count: int, folder: Path) -> Path:
    """`folder` with `count` colour JPEG files, the photographs of `data`, a tar or a folder, as often as it takes."""
    source = data
    if not data.exists():
        raise SystemExit(f"{data}: does not exist; give --data a tar or a folder of photographs")
    if not data.is_dir():
        source = folder.parent.with_name(folder.parent.name + "_source")  # not among the class folders
        with tarfile.open(data) as packed:
            packed.extractall(source, filter="data")
    files = sorted(file for file in source.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    files = [file for file in files if Image.open(file).mode == "RGB"]
    if not files:
        raise SystemExit(f"{data}: holds no colour JPEG files; give --data a tar or a folder of photographs")
    folder.mkdir(parents=True)
    for number in range(count or len(files)):
        (folder / f"{number:06}.jpg").write_bytes(files[number % len(files)].read_bytes())
    return folder


def machine(*packages: str) -> dict[str, Any]:
    """What a figure was taken on: the machine, its load, and the versions of `packages`."""
    return {
        "machine": platform.platform(),
        "cores": len(psutil.Process().cpu_affinity() or []),
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in packages},
        "date": date.today().isoformat(),
    }


def tell(arguments: argparse.Namespace, result: dict[str, Any], *packages: str) -> None:
    """Print the settings, what `machine` says, and the result: one JSON object where `arguments.json`, else a table."""
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    whole = {**settings, **machine(*packages), **result}
    width = max(map(len, whole))
    table = "\n".join(f"{key:>{width}}  {value}" for key, value in whole.items())
    print(json.dumps(whole, indent=1) if arguments.json else table)
