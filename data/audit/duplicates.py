"""Which pictures are the same: pairs found by their hashes in far fewer than all comparisons, then proved by pixels.

What a pair means for a data set (a leak, a conflict of labels) is decided in `data.audit.copies`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from data.audit.fingerprint import CROPS, SIDE, TURNS, Turn, crop_hashes, cropped, laid
from data.pixels import Pixels

RADIUS = 11  # bits in which the hashes of a pair may differ
_CROPPED = 8  # bits in which that of a crop may differ
_CHUNK = 16  # bits; of four chunks, one differs in at most RADIUS // 4
_MOST = 64  # candidates looked at in a crowded bucket
_BLOCK = 2048  # pairs proved at once
# What proves a pair: the correlation of details, and that in standard deviations of what chance gives. A pair that was
# aligned first has to be more alike.
_LIKE, _EVIDENCE = 0.7, 12.0
_ALIGNED, _ALIGNED_EVIDENCE = 0.9, 15.0
_EVERYWHERE, _FEW = 0.7, 4
_ALIGNMENTS = 2000  # candidates that are aligned, those of the nearest hashes; a few milliseconds each
_FLAT = 2.0  # levels of standard deviation below which a picture has nothing to compare
_SEARCH = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)

Numbers = float | NDArray[np.float64]


class Pair(NamedTuple):
    """Picture `first`, laid as `turn` says, is picture `second`; `likeness` is the correlation of their details."""

    first: int
    second: int
    turn: Turn
    distance: int
    likeness: float


def find(pictures: Pixels, hashes: NDArray[np.uint64]) -> list[Pair]:
    """The pairs among N pictures uint8 `[N, S, S]` with hashes uint64 `[N, 8]`, by position.

    Of two pictures whose hashes differ in at most `RADIUS` bits, in any of the eight ways to lay one, none is missed
    (multi-index hashing, Norouzi et al. 2012), save where more than `_MOST` others share a quarter of its hash: there
    the nearest in the order of the hashes are looked at. Then each picture is cropped by 5% in a few ways, and pictures
    within `_CROPPED` bits of that are looked for. Flat pictures, such as blank pages, have no pairs.
    """
    count = len(pictures)
    blocks = (pictures[start : start + _BLOCK] for start in range(0, count, _BLOCK))  # std makes float64 of them
    uneven = np.flatnonzero(np.concatenate([block.std(axis=(1, 2)) for block in blocks]) >= _FLAT)
    if len(uneven) < 2:
        return []
    upright = hashes[uneven, 0]
    candidates = _candidates(hashes[uneven], upright, RADIUS)
    turned = _proven(pictures, uneven, candidates, lambda picture, i: (laid(picture, TURNS[i]), TURNS[i]))
    pairs = list(turned)
    known = np.array([pair[:2] for pair in pairs], dtype=np.int64).reshape(-1, 2)
    crops = _candidates(np.stack([crop_hashes(pictures[i]) for i in uneven]), upright, _CROPPED)
    first, second = uneven[crops.first], uneven[crops.second]
    keys = np.minimum(first, second) * count + np.maximum(first, second)
    crops = crops.take(~np.isin(keys, known.min(axis=1, initial=count) * count + known.max(axis=1, initial=0)))
    pairs += _proven(pictures, uneven, crops, lambda picture, i: (cropped(picture, CROPS[i]), TURNS[0]))
    return _without_templates(pictures, pairs)


class _Candidates(NamedTuple):
    """Pairs by position, each once: the form (of several) in which `first` is nearest to `second`, and how near."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    form: NDArray[np.int64]
    distance: NDArray[np.int64]

    def take(self, rows: NDArray[Any]) -> _Candidates:
        return _Candidates(*(column[rows] for column in self))


def _candidates(forms: NDArray[np.uint64], upright: NDArray[np.uint64], radius: int) -> _Candidates:
    """The pairs of which one picture in some form, hashes `[N, F]`, is within `radius` of another, hashes `[N]`."""
    blocks = [block for shift in range(0, 64, _CHUNK) for block in _by_chunk(forms, upright, radius, np.uint64(shift))]
    first, second, form, distance = (np.concatenate(column) for column in zip(*blocks, strict=True))
    low, high = np.minimum(first, second), np.maximum(first, second)
    order = np.lexsort((form, distance, high, low))
    low, high = low[order], high[order]
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    return _Candidates(first, second, form, distance).take(order[new])


def _by_chunk(
    forms: NDArray[np.uint64], upright: NDArray[np.uint64], radius: int, shift: np.uint64
) -> Iterator[_Candidates]:
    """Pairs whose 16 bits at `shift` differ in at most a quarter of `radius` bits."""
    rolled = _rolled(upright, shift)
    order = np.argsort(rolled, kind="stable")
    rolled = rolled[order]
    starts = np.searchsorted(rolled >> np.uint64(48), np.arange(2**_CHUNK + 1, dtype=np.uint64))
    bits = [1 << bit for bit in range(48, 48 + _CHUNK)]
    flips = [flipped for count in range(radius // 4 + 1) for flipped in itertools.combinations(bits, count)]
    for form in range(forms.shape[1]):
        asked = _rolled(forms[:, form], shift)
        for flipped in flips:
            rows, positions = _bucket(asked ^ np.uint64(sum(flipped)), rolled, starts)
            columns = order[positions]
            distance = np.bitwise_count(forms[rows, form] ^ upright[columns]).astype(np.int64)
            near = (distance <= radius) & (rows != columns)
            yield _Candidates(rows[near], columns[near], np.full(near.sum(), form), distance[near])


def _bucket(
    asked: NDArray[np.uint64], rolled: NDArray[np.uint64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each of `asked` the positions in the sorted `rolled` with the same 16 highest bits: rows and positions."""
    chunk = (asked >> np.uint64(48)).astype(np.int64)
    low, high = starts[chunk], starts[chunk + 1]
    for row in np.flatnonzero(high - low > _MOST).tolist():
        middle = int(np.searchsorted(rolled[low[row] : high[row]], asked[row])) + int(low[row])
        low[row] = min(max(middle - _MOST // 2, low[row]), high[row] - _MOST)
        high[row] = low[row] + _MOST
    counts = high - low
    rows = np.repeat(np.arange(len(asked)), counts)
    offsets = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, low[rows] + offsets


def _rolled(values: NDArray[np.uint64], shift: np.uint64) -> NDArray[np.uint64]:
    """The bits rotated to the left."""
    return (values << shift) | (values >> (np.uint64(64) - shift)) if shift else values


def _proven(
    pictures: Pixels,
    position: NDArray[np.int64],
    candidates: _Candidates,
    formed: Callable[[Pixels, int], tuple[Pixels, Turn]],
) -> Iterator[Pair]:
    """The candidates that are the same picture by their pixels, nearest hashes first.

    Candidate i is the picture at `position[i]`; `formed` gives it in one of its forms, and how that is laid.
    """
    left, order = _ALIGNMENTS, np.argsort(candidates.distance, kind="stable")
    for start in range(0, len(order), _BLOCK):
        block = candidates.take(order[start : start + _BLOCK])
        firsts, seconds = position[block.first], position[block.second]
        turned = [formed(pictures[i], form) for i, form in zip(firsts, block.form.tolist(), strict=True)]
        first_pictures, other = np.stack([picture for picture, _ in turned]), pictures[seconds]
        likeness, freedom = _likeness(first_pictures, other)
        same = (likeness >= _LIKE) & (_evidence(likeness, freedom) >= _EVIDENCE)
        worth = ~same & (_evidence(_ALIGNED, freedom) >= _ALIGNED_EVIDENCE)
        for row in np.flatnonzero(worth)[:left].tolist():
            likeness[row] = _aligned(first_pictures[row], other[row])
            same[row] = (likeness[row] >= _ALIGNED) & (_evidence(likeness[row], freedom[row]) >= _ALIGNED_EVIDENCE)
            left -= 1
        for row in np.flatnonzero(same).tolist():
            yield Pair(
                int(firsts[row]), int(seconds[row]), turned[row][1], int(block.distance[row]), float(likeness[row])
            )


def _without_templates(pictures: Pixels, pairs: list[Pair]) -> list[Pair]:
    """The pairs without those of pages that share a layout and not their words.

    Two pictures that are not alike everywhere still count as copies, of different edits, unless one of them is as like
    to more than `_FEW` others.
    """
    partners = np.bincount([end for pair in pairs for end in pair[:2]], minlength=1)
    return [
        pair
        for pair in pairs
        if max(partners[pair.first], partners[pair.second]) <= _FEW
        or _everywhere(laid(pictures[pair.first], pair.turn), pictures[pair.second]) >= _EVERYWHERE
    ]


def _everywhere(left: Pixels, other: Pixels) -> float:
    """The 5th percentile of the correlations of details in the 8 x 8 parts of two pictures that have any details."""
    parts, others = (
        _details(picture[None]).reshape(8, SIDE // 8, 8, SIDE // 8).swapaxes(1, 2).reshape(64, -1)
        for picture in (left, other)
    )
    energy, energies = (parts**2).sum(axis=1), (others**2).sum(axis=1)
    likeness = (parts * others).sum(axis=1) / np.sqrt(np.maximum(energy * energies, 1e-12))
    return float(np.percentile(likeness[np.maximum(energy, energies) >= 0.1 / 64], 5))


def _likeness(left: Pixels, other: Pixels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The correlation of the details of each two pictures `[K, S, S]`, and how many independent values it compares."""
    details, others = _details(left), _details(other)
    freedom = np.minimum(_freedom(details), _freedom(others))
    return (details * others).sum(axis=(1, 2), dtype=np.float64), freedom


def _evidence(likeness: Numbers, freedom: Numbers) -> NDArray[np.float64]:
    """Fisher's z of a correlation, in standard deviations of that of unrelated pictures."""
    return np.asarray(np.arctanh(np.clip(likeness, 0, 0.9999)) * np.sqrt(freedom))


def _freedom(details: NDArray[np.float32]) -> NDArray[np.float64]:
    """How many independent values pictures `[K, S, S]` have: the participation ratio of their power spectrum.

    A photograph has hundreds; an enlarged digit of 8 x 8 pixels has thirty, and resembles others by chance.
    """
    power = np.abs(np.fft.rfft2(details)) ** 2
    return np.asarray(power.sum(axis=(1, 2)) ** 2 / np.maximum((power**2).sum(axis=(1, 2)), 1e-12))


def _details(pictures: Pixels) -> NDArray[np.float32]:
    """What is finer than about a tenth of the picture, at unit length: pages of one layout differ in it alone."""
    values = pictures.astype(np.float32)
    fine = values - uniform_filter(values, size=(0, 7, 7), mode="nearest")
    length = np.sqrt((fine**2).sum(axis=(1, 2), keepdims=True))
    return np.asarray(fine / np.maximum(length, 1e-6))


def _aligned(left: Pixels, other: Pixels) -> float:
    """The correlation of details after the affine motion that fits best, as a crop needs it; 0 where none is found."""
    left = np.ascontiguousarray(left)
    try:
        _, motion = cv2.findTransformECC(
            other, left, np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, _SEARCH, np.full_like(left, 255), 3
        )
    except cv2.error:  # it does not converge: other pictures
        return 0.0
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(left, motion, other.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inner = np.s_[None, SIDE // 10 : -(SIDE // 10), SIDE // 10 : -(SIDE // 10)]
    return float(_likeness(moved[inner], other[inner])[0][0])
