"""Transforms for tests of worker processes, which import this file and nothing else of the tests."""

from __future__ import annotations

import time

import numpy as np

SIDE = 16


class Odd(Exception):
    """An error that can be pickled and not be unpickled."""

    def __init__(self, one: int, other: int):
        super().__init__(f"{one} and {other}")


def slow(image: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    """The top left corner, after a while."""
    time.sleep(0.005)
    return image[:SIDE, :SIDE]


def divides(image: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    """The same at once; an error for images of 47 rows."""
    if image.shape[0] == 47:
        raise ZeroDivisionError("here")
    return image[:SIDE, :SIDE]


def odd(image: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    """An error that must be told in other words."""
    raise Odd(*image.shape[:2])
