"""Labels from probabilities for a high macro-F1: class multipliers fitted on out-of-fold predictions.

The most probable class is best for accuracy; macro-F1 gains when rare classes are predicted more often. `prior` divides
by the class's share to some power (logit adjustment, Menon et al. 2021), one parameter; `thresholds` fits a multiplier
for each class by coordinate ascent on macro-F1.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensemble.calibration.scaling import Floats
from ensemble.scores import Ints, macro_f1

Rule = Literal["prior", "thresholds"]
_POWERS = np.arange(0.0, 1.55, 0.05)
_LIMIT = math.log(5.0)  # of a multiplier's logarithm: more says that the probabilities are wrong, not the decision
_RIVALS = 8
_SWEEPS = 5
_GAIN = 1e-9

Logs = NDArray[np.floating]


def fit(rule: Rule, logs: Logs, targets: Ints) -> Floats:
    """Logarithms of the class multipliers `[C]`, their mean 0, of the best macro-F1 on these rows."""
    shifts = _prior(logs, targets) if rule == "prior" else _thresholds(logs, targets)
    return np.asarray(shifts - shifts.mean())


def labels(logs: Logs, shifts: Floats | None) -> Ints:
    """The class `[N]` that each row becomes; without shifts the most probable one."""
    return np.asarray((logs if shifts is None else logs + shifts.astype(logs.dtype)).argmax(axis=1))


def _prior(logs: Logs, targets: Ints) -> Floats:
    classes = logs.shape[1]
    share = (np.bincount(targets, minlength=classes) + 1) / (len(targets) + classes)
    rows, values = _strongest(logs)
    candidates = [-power * np.log(share) for power in _POWERS]
    scored = [macro_f1(_labels(rows, values + shifts[rows]), targets, classes) for shifts in candidates]
    return candidates[int(np.argmax(scored))]


def _thresholds(logs: Logs, targets: Ints) -> Floats:
    """Each class in turn gets the multiplier of the best macro-F1, until none gains."""
    rows, values = _strongest(logs)
    state = _State(rows, values, targets, np.zeros(logs.shape[1]), _labels(rows, values))
    slots = _slots(rows, logs.shape[1])
    for _ in range(_SWEEPS):
        if not sum(_improve(state, c, *slots[c]) for c in range(logs.shape[1]) if len(slots[c][0])):
            break
    return state.shifts


class _State(NamedTuple):
    """The candidate classes of each image and their log probabilities, the targets, the classes' shifts, the labels."""

    rows: Ints
    values: Floats
    targets: Ints
    shifts: Floats
    predicted: Ints


def _labels(rows: Ints, shifted: Floats) -> Ints:
    return np.asarray(rows[np.arange(len(rows)), shifted.argmax(axis=1)])


def _strongest(logs: Logs) -> tuple[Ints, Floats]:
    """The few most probable classes of each row `[N, K]`, ascending, and their log probabilities."""
    few = min(_RIVALS, logs.shape[1])
    rows = np.sort(np.argpartition(logs, -few, axis=1)[:, -few:], axis=1)
    return rows, np.take_along_axis(logs, rows, axis=1).astype(np.float64)


def _slots(rows: Ints, classes: int) -> list[tuple[Ints, Ints]]:
    """For each class its images and its slots there."""
    order = np.argsort(rows, axis=None, kind="stable")
    ends = np.searchsorted(rows.ravel()[order], np.arange(classes + 1))
    images, slots = np.unravel_index(order, rows.shape)
    return [(images[a:b], slots[a:b]) for a, b in pairwise(ends)]


def _improve(state: _State, c: int, image: Ints, slot: Ints) -> bool:
    """Move the shift of class c to the best macro-F1 while all others stay; whether it moved."""
    rows, here, classes = state.rows[image], np.arange(len(image)), len(state.shifts)
    shifted = state.values[image] + state.shifts[rows]
    shifted[here, slot] = -np.inf
    rival = shifted.argmax(axis=1)
    turn = shifted[here, rival] - state.values[image, slot]  # c wins this image above this shift
    predicted, second = state.predicted.copy(), rows[here, rival]
    predicted[image] = np.where(turn < -_LIMIT, c, second)  # as if c's shift were the lowest
    hits = state.targets[predicted == state.targets]
    right, there, count_predicted = (
        np.bincount(labels, minlength=classes).astype(float) for labels in (hits, state.targets, predicted)
    )
    open_ = np.flatnonzero(np.abs(turn) <= _LIMIT)
    order = open_[np.argsort(turn[open_], kind="stable")]
    totals = _totals(c, second[order], state.targets[image[order]], right, count_predicted, there)
    best = _choose(turn[order], totals, float(state.shifts[c]))
    moved = best != state.shifts[c]
    state.shifts[c] = best
    state.predicted[image] = np.where(turn < best, c, second)
    return bool(moved)


def _totals(c: int, second: Ints, truth: Ints, right: Floats, count_predicted: Floats, there: Floats) -> Floats:
    """The sum of the classes' F1 after 0, 1, ... images went over from their second class to c, `[n + 1]`."""
    f1 = 2 * right / np.maximum(there + count_predicted, 1)
    total, totals = float(f1.sum()), [float(f1.sum())]
    for loser, true in zip(second.tolist(), truth.tolist(), strict=True):
        before = f1[loser] + f1[c]
        right[loser] -= loser == true
        count_predicted[loser] -= 1
        right[c] += c == true
        count_predicted[c] += 1
        f1[loser] = 2 * right[loser] / max(there[loser] + count_predicted[loser], 1)
        f1[c] = 2 * right[c] / max(there[c] + count_predicted[c], 1)
        total += f1[loser] + f1[c] - before
        totals.append(total)
    return np.array(totals)


def _choose(turns: Floats, totals: Floats, old: float) -> float:
    """The middle of the interval between two turns with the highest total, the nearest to `old` among equals."""
    edges = np.concatenate([[-np.inf], turns, [np.inf]])
    low, high = np.maximum(edges[:-1], -_LIMIT), np.minimum(edges[1:], _LIMIT)
    usable = low < high
    middle = (low + high) / 2
    now = int(np.searchsorted(turns, old))
    best = totals[usable].max()
    if best <= totals[now] + _GAIN:
        return old
    at = np.flatnonzero(usable & (totals >= best - _GAIN))
    return float(middle[at[np.argmin(np.abs(middle[at] - old))]])
