"""The version of this checkout and the `--version` of every command. pyproject.toml is the one place that states it."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

_PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def version() -> str:
    """The version in pyproject.toml: that of the code that runs, whatever an older install recorded."""
    return str(tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"]["version"])


def line() -> str:
    """What `--version` prints."""
    return f"tandem {version()}"


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add `--version`, which prints one line and stops."""
    parser.add_argument("--version", action="version", version=line(), help="print the version and stop")
