"""The version of this checkout, as `--version` prints it. pyproject.toml is the one place that states it."""

from __future__ import annotations

from pathlib import Path

_PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def version() -> str:
    """The version in pyproject.toml: that of the code that runs, whatever an older install recorded."""
    import tomllib  # from Python 3.11 on: python -m doctor runs on older ones, too

    return str(tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"]["version"])


def line() -> str:
    """What `--version` prints."""
    return f"tandem {version()}"
