"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a batch, drawn here and applied by the engines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.contract import MixPlan
from config.sections.data import Mix
from data.rng import philox


def plan(settings: Mix, batch: int, size: int, seed: int, step: int, epochs_left: int) -> MixPlan | None:
    """The plan of one step, or None where mixing is off for the whole run.

    A run that mixes gets a plan for every step, the identity where this step does not mix, so that the engine's step
    keeps one shape. `size` is the side of the square images in pixels; `epochs_left` counts the current epoch.
    Probabilities, shares and boxes are those of `timm.data.Mixup`, whose modes `batch` and `elem` are ours; an image's
    partner is drawn at random, where timm takes the batch in reverse.
    """
    if settings.mixup <= 0 and settings.cutmix <= 0:
        return None
    if epochs_left <= settings.off_epochs:
        ones = np.ones(batch, np.float32)
        return MixPlan(np.arange(batch, dtype=np.int32), ones, np.zeros((batch, 4), np.int32), ones)
    rng = philox(seed, "mix", step)
    draws = batch if settings.mode == "elementwise" else 1
    mixes = rng.random(draws) < settings.prob
    switch = rng.random(draws)
    both = settings.mixup > 0 and settings.cutmix > 0
    cuts = switch < settings.switch_prob if both else np.full(draws, settings.cutmix > 0)
    alphas = settings.mixup, settings.cutmix
    mixup, cutmix = (rng.beta(alpha, alpha, draws) if alpha > 0 else 1.0 for alpha in alphas)
    lam = np.where(mixes, np.where(cuts, cutmix, mixup), 1.0)
    boxes = _boxes(np.where(cuts, lam, 1.0), size, rng.integers(0, size, (draws, 2)))
    area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    shares = np.where(cuts, 1 - area / size**2, lam)
    return MixPlan(
        rng.permutation(batch).astype(np.int32),
        _each(np.where(cuts, 1.0, lam), batch, np.float32),
        _each(boxes, batch, np.int32),
        _each(shares, batch, np.float32),
    )


def weights(plan: MixPlan | None, each: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weights float32 `[N]` of a batch after mixing: a pair weighs what its two shares weigh."""
    return each if plan is None else plan.own * each + (1 - plan.own) * each[plan.permutation]


def _boxes(lam: NDArray[np.float64], size: int, centres: NDArray[np.int64]) -> NDArray[np.int64]:
    """Squares of (1 - lam) of the area around `centres` `[n, 2]`, cut at the border: `[n, 4]` as in `MixPlan.box`."""
    side = (size * np.sqrt(1 - lam)).astype(np.int64)[:, None]
    low, high = np.clip(centres - side // 2, 0, size), np.clip(centres + (side + 1) // 2, 0, size)
    return np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)


def _each(values: NDArray[Any], batch: int, dtype: type) -> NDArray[Any]:
    """One row for each image, also where a single one was drawn for all."""
    return np.ascontiguousarray(np.broadcast_to(values, (batch, *values.shape[1:])), dtype=dtype)
