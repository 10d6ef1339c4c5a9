"""What the benchmarks share: arguments, photographs from a tar or a folder, peak memory, and the form of a result."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tarfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "photos.tar"


def parser(doc: str | None, photographs: bool = False) -> argparse.ArgumentParser:
    """A parser with `--json`, and with `--data` for photographs; its description is the first line of `doc`."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    if photographs:
        made.add_argument("--data", type=Path, default=PHOTOS, help="a tar of photographs, or a folder")
    made.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    return made


def peak(who: int = resource.RUSAGE_SELF) -> int:
    """The largest resident set in bytes of this process, or of its children that have ended."""
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # macOS tells bytes, Linux KiB


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
    if arguments.json:
        print(json.dumps(whole, indent=1))
        return
    for key, value in flat(whole):
        lines = isinstance(value, list) and value and all(isinstance(line, str) for line in value)
        print(f"{key}  " + ("\n  ".join(["", *value]) if lines else str(value)))


def flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested figures as (dotted name, value)."""
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in flat(inner, f"{prefix}.{key}" if prefix else str(key))]
    return [(prefix, value)]
