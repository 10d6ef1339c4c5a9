"""What was fitted to an ensemble beyond weights and temperatures, as plain arrays in a safetensors file.

`stack.*` is a `stack.Stack`, `vector.*` a `maps.Vector`, `isotonic.*` a `maps.Isotonic`. When they apply stands in
`postprocess`.
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

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class FittedParams:
    """A stack in place of the weighted mean, and one map after it; None where there is none."""

    stack: Stack | None = None
    map: Vector | Isotonic | None = None

    def __bool__(self) -> bool:
        return self.stack is not None or self.map is not None


def write(path: Path, layers: FittedParams) -> None:
    """Write the arrays; the file must not exist."""
    arrays: Arrays = {}
    if layers.stack:
        arrays |= {"stack.coef": layers.stack.coef, "stack.intercept": layers.stack.intercept}
    if isinstance(layers.map, Vector):
        arrays |= {"vector.scale": layers.map.scale, "vector.bias": layers.map.bias}
    if isinstance(layers.map, Isotonic):
        isotonic = layers.map
        arrays |= {
            "isotonic.x": isotonic.x,
            "isotonic.y": isotonic.y,
            "isotonic.starts": isotonic.starts.astype(np.int64),
        }
        arrays["isotonic.floor"] = np.array([isotonic.floor])
    atomic_write(path, safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def read(path: Path, classes: int, groups: int) -> FittedParams:
    """Read what `write` wrote; `WeightsError` when it is damaged or is not for so many classes and groups."""
    try:
        arrays = safetensors.numpy.load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{path}: is damaged or no safetensors file ({error}); fit the ensemble again") from error
    kinds: dict[str, Callable[[Arrays], Any]] = {"stack": _stack, "vector": _vector, "isotonic": _isotonic}
    by_kind: dict[str, Any] = {}
    for kind, make in kinds.items():
        mine = {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(f"{kind}.")}
        try:
            by_kind[kind] = make(mine) if mine else None
        except (KeyError, IndexError) as error:
            raise WeightsError(f"{path}: its arrays of {kind} are not whole ({error}); fit it again") from error
    layers = FittedParams(by_kind["stack"], by_kind["vector"] or by_kind["isotonic"])
    _check(path, layers, classes, groups)
    return layers


def _stack(arrays: Arrays) -> Stack:
    return Stack(arrays["coef"], arrays["intercept"])


def _vector(arrays: Arrays) -> Vector:
    return Vector(arrays["scale"], arrays["bias"])


def _isotonic(arrays: Arrays) -> Isotonic:
    return Isotonic(arrays["x"], arrays["y"], arrays["starts"], float(arrays["floor"][0]))


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
