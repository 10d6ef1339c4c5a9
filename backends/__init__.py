"""The engines. `contract` is the one interface; each engine is imported only when it is opened."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import cast

from backends.contract import Backend
from config.errors import BackendUnavailable

NAMES = ("mlx", "torch", "numpy")
_NEEDS = {"mlx": ("mlx",), "torch": ("torch", "timm"), "numpy": ()}
_INSTALL = 'pip install -e ".[{name}]"'


def require(name: str) -> None:
    """Raise `BackendUnavailable`, naming the install command, when the frameworks of `name` are missing."""
    missing = [module for module in _NEEDS[name] if not installed(module)]
    if missing:
        raise BackendUnavailable(
            f"the {name} engine needs {' and '.join(missing)}, not installed here; run: {_INSTALL.format(name=name)}"
        )


def default() -> str:
    """The engine that is installed; of both, MLX on a Mac and else torch. `BackendUnavailable` where none is."""
    found = [name for name in ("mlx", "torch") if all(map(installed, _NEEDS[name]))]
    if not found:
        require("mlx" if sys.platform == "darwin" else "torch")
    return found[0] if sys.platform == "darwin" else found[-1]


def installed(module: str) -> bool:
    """Whether a top-level module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def load(name: str) -> Backend:
    """The engine called `name` ("mlx", "torch", "numpy"); its framework is imported here and not before."""
    if name not in NAMES:
        raise BackendUnavailable(f"no engine called {name!r}; there are {', '.join(NAMES)}")
    require(name)
    return cast(Backend, importlib.import_module(f"backends.{name}.session"))
