"""Whether every pin of `requirements.lock` has a wheel for macOS on Apple silicon: `make wheels`; needs the network.

Linux's own packages (CUDA, MLX's CPU library) are left out and MLX's Metal library takes their place. Nothing is
installed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"
_LINUX = re.compile(r"nvidia-|cuda-|triton|mlx-cpu|mlx-cuda", re.IGNORECASE)
_PLATFORMS = ("macosx_14_0_arm64", "macosx_11_0_arm64")
_PYTHONS = ("3.11", "3.12", "3.13")


def pins(lock: str) -> list[str]:
    """What a Mac installs of the lock file's text, with `mlx-metal` beside `mlx`."""
    found = [line.strip() for line in lock.splitlines() if "==" in line and not line.lstrip().startswith("#")]
    metal = [pin.replace("mlx==", "mlx-metal==") for pin in found if pin.startswith("mlx==")]
    return [pin for pin in found if not _LINUX.match(pin)] + metal


def main(argv: Sequence[str] | None = None) -> int:
    """Ask pip for all pins at once, for each Python; exit code 1 with pip's own line where a wheel is missing."""
    parser = argparse.ArgumentParser(prog="python -m tests.wheels", description=__doc__)
    parser.add_argument("--python", nargs="+", default=_PYTHONS, help="versions of Python")
    given = parser.parse_args(argv)
    wanted = pins(LOCK.read_text())
    for python in given.python:
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--only-binary=:all:"]
            words += ["--target", folder, "--python-version", python, *(f"--platform={p}" for p in _PLATFORMS)]
            done = subprocess.run([*words, *wanted], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"Python {python}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return 1
        print(f"Python {python}: {len(wanted)} pins have wheels for {_PLATFORMS[0]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
