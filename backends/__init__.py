"""The engines. `contract` is the one interface; each engine is imported only when it is opened."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import NamedTuple, cast

from backends.contract import Backend
from config.errors import BackendUnavailable

_INSTALL = 'pip install -e ".[{name}]"'


class Engine(NamedTuple):
    """`module` is a `contract.Backend` and needs the `packages`. Limits of an architecture (`models.limits`) hold for
    engines that build it; the tests' own ignores it."""

    module: str
    packages: tuple[str, ...]
    builds_networks: bool = True


ENGINES = {
    "mlx": Engine("backends.mlx.session", ("mlx",)),
    "torch": Engine("backends.torch.session", ("torch", "timm")),
}


def missing(name: str) -> list[str]:
    """The packages of an engine that are not installed here."""
    return [module for module in ENGINES[name].packages if not installed(module)]


def require(name: str) -> None:
    """Raise `BackendUnavailable`, naming the install command, when the frameworks of `name` are missing."""
    if absent := missing(name):
        raise BackendUnavailable(
            f"the {name} engine needs {' and '.join(absent)}, not installed here; run: {_INSTALL.format(name=name)}"
        )


def default() -> str:
    """The engine that is installed; of both, MLX on a Mac and else torch. `BackendUnavailable` where none is."""
    available = [name for name in ("mlx", "torch") if not missing(name)]
    if not available:
        require("mlx" if sys.platform == "darwin" else "torch")
    return available[0] if sys.platform == "darwin" else available[-1]


def installed(module: str) -> bool:
    """Whether a top-level module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def load(name: str) -> Backend:
    """The engine called `name` ("mlx", "torch"); its framework is imported here and not before."""
    if name not in ENGINES:
        raise BackendUnavailable(f"no engine called {name!r}; there are {', '.join(ENGINES)}")
    require(name)
    return cast(Backend, importlib.import_module(ENGINES[name].module))
