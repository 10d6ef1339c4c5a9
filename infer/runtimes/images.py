"""The images that predictors take: their check, batches of fixed sizes, and the names of an artefact's inputs.

`data` decodes and resizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.card import Card

Images = NDArray[np.uint8]


def checked(images: Sequence[Images], card: Card) -> tuple[Images, ...]:
    """The same images; `ValueError` unless they are uint8 `[N, S, S, 3]`, S the size of each of the card's inputs, and
    of one N: a mistake of the caller."""
    sizes = [prep.size for prep in card.inputs]
    wanted = [(size, size, 3) for size in sizes]
    if [i.shape[1:] for i in images] != wanted or {i.dtype for i in images} != {np.dtype(np.uint8)}:
        expected = " and ".join(f"[N, {size}, {size}, 3]" for size in sizes)
        received = " and ".join(f"{i.dtype} {list(i.shape)}" for i in images)
        raise ValueError(f"images must be uint8 {expected}, got {received}")
    if len({len(i) for i in images}) > 1:
        raise ValueError(f"each input must have as many images, got {', '.join(str(len(i)) for i in images)}")
    return tuple(images)


def split(images: NDArray[Any], batches: Sequence[int]) -> list[NDArray[Any]]:
    """Cut `images` into batches of the allowed sizes, the largest first; the last is padded with its last image."""
    blocks: list[NDArray[Any]] = []
    start = 0
    while start < len(images):
        left = len(images) - start
        size = max((b for b in batches if b <= left), default=min(batches))
        block = images[start : start + size]
        blocks.append(np.concatenate([block, np.repeat(block[-1:], size - len(block), axis=0)]))
        start += size
    return blocks


def names(card: Card, stem: str = "images") -> tuple[str, ...]:
    """The names of the card's inputs in an artefact: the stem, or, of several, `images_480`, `images_224`, ...

    A size that occurs again gets a number: `images_224_2`.
    """
    if not card.further_inputs:
        return (stem,)
    sizes = [prep.size for prep in card.inputs]
    again = [sizes[:position].count(size) for position, size in enumerate(sizes)]
    return tuple(f"{stem}_{size}{f'_{n + 1}' if n else ''}" for size, n in zip(sizes, again, strict=True))
