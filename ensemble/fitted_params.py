"""Parameters of an ensemble beyond weights and temperatures, as plain arrays in a safetensors file.

`stack.*` is a `stack.Stack`, `vector.*` a `maps.Vector`, `isotonic.*` a `maps.Isotonic`. `postprocess` applies them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from config.errors import WeightsError
from config.places import atomic_write
from ensemble.calibration.maps import Isotonic, Vector
from ensemble.weighting.stack import Stack


@dataclass(frozen=True)
class FittedParams:
    """A stack in place of the weighted mean, and one map after it; None where there is none."""

    stack: Stack | None = None
    map: Vector | Isotonic | None = None

    def __bool__(self) -> bool:
        return self.stack is not None or self.map is not None


def write(path: Path, layers: FittedParams) -> None:
    """Write the arrays; the file must not exist."""
    arrays: dict[str, NDArray[Any]] = {}
    for params in filter(None, (layers.stack, layers.map)):
        kind = type(params).__name__.lower()
        arrays |= {f"{kind}.{name}": np.atleast_1d(value) for name, value in vars(params).items()}
    if isinstance(layers.map, Isotonic):
        arrays["isotonic.starts"] = layers.map.starts.astype(np.int64)
    atomic_write(path, safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def read(path: Path, classes: int, groups: int) -> FittedParams:
    """Read what `write` wrote; `WeightsError` when it is damaged or is not for so many classes and groups."""
    try:
        arrays = safetensors.numpy.load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{path}: is damaged or no safetensors file ({error}); fit the ensemble again") from error
    makers: dict[str, Callable[[dict[str, NDArray[Any]]], Any]] = {
        "stack": lambda a: Stack(a["coef"], a["intercept"]),
        "vector": lambda a: Vector(a["scale"], a["bias"]),
        "isotonic": lambda a: Isotonic(a["x"], a["y"], a["starts"], float(a["floor"][0])),
    }
    by_kind: dict[str, Any] = {}
    for kind, make in makers.items():
        mine = {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(f"{kind}.")}
        try:
            by_kind[kind] = make(mine) if mine else None
        except (KeyError, IndexError) as error:
            raise WeightsError(f"{path}: its arrays of {kind} are not whole ({error}); fit it again") from error
    layers = FittedParams(by_kind["stack"], by_kind["vector"] or by_kind["isotonic"])
    _check(path, layers, classes, groups)
    return layers


def _check(path: Path, layers: FittedParams, classes: int, groups: int) -> None:
    stack, after = layers.stack, layers.map
    fits = stack is None or (stack.coef.shape == (classes, groups * classes) and stack.intercept.shape == (classes,))
    if isinstance(after, Vector):
        fits &= after.scale.shape == after.bias.shape == (classes,)
    if isinstance(after, Isotonic):
        ends = after.starts
        fits &= ends.shape == (classes + 1,) and ends[0] == 0 and ends[-1] == len(after.x) == len(after.y)
        fits &= bool((np.diff(ends) > 0).all())
    if not fits:
        raise WeightsError(
            f"{path}: was fitted for other classes or members than the {classes} classes and {groups} groups of members"
            " of this ensemble; fit it again"
        )
