"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a batch, drawn here and applied by the engines."""

from __future__ import annotations

import numpy as np

from backends.contract import MixPlan
from config.schema import Mix
from data import keyed


def plan(settings: Mix, batch: int, size: int, seed: int, step: int, epochs_left: int) -> MixPlan | None:
    """The plan of one step, or None where mixing is off for the whole run.

    A run that mixes gets a plan for every step, the identity where this step does not mix, so that the engine's step
    keeps one shape. `size` is the side of the square images in pixels; `epochs_left` counts the current epoch.
    """
    if settings.mixup <= 0 and settings.cutmix <= 0:
        return None
    rng = keyed.rng(seed, "mix", step)
    if epochs_left <= settings.off_epochs or rng.random() >= settings.prob:
        return _identity(batch)
    cutmix = settings.mixup <= 0 or (settings.cutmix > 0 and rng.random() < settings.switch_prob)
    alpha = settings.cutmix if cutmix else settings.mixup
    lam = float(rng.beta(alpha, alpha))
    permutation = rng.permutation(batch).astype(np.int32)
    return _cutmix(permutation, lam, size, rng) if cutmix else _mixup(permutation, lam)


def _identity(batch: int) -> MixPlan:
    return _mixup(np.arange(batch, dtype=np.int32), 1.0)


def _mixup(permutation: np.ndarray, lam: float) -> MixPlan:
    own = np.full(len(permutation), lam, np.float32)
    return MixPlan(permutation, own, np.zeros((len(permutation), 4), np.int32), own)


def _cutmix(permutation: np.ndarray, lam: float, size: int, rng: np.random.Generator) -> MixPlan:
    """A box of (1 - lam) of the area around a uniform centre, cut at the border; the label's share is its true area."""
    half = int(size * np.sqrt(1 - lam)) // 2
    centre = rng.integers(0, size, 2)
    top, left = np.clip(centre - half, 0, size)
    bottom, right = np.clip(centre + half, 0, size)
    own = 1 - (bottom - top) * (right - left) / size**2
    n = len(permutation)
    box = np.tile(np.array([top, bottom, left, right], np.int32), (n, 1))
    return MixPlan(permutation, np.ones(n, np.float32), box, np.full(n, own, np.float32))
