"""Learning-rate schedules and the EMA's decay: pure functions of the step, nothing to save, nothing to resume.

The one schedule that depends on the scores, `plateau`, is a factor kept by `policy.plateau`; here it is constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from config.sections import train as settings


@dataclass(frozen=True)
class Schedule:
    """A schedule over `total` steps: `warmup` steps up to `peak`, then `name` down to `floor` (learning rates).

    `period` and `growth` are the warm restarts' first length in steps and its factor; `every` and `gamma` the step
    schedule's interval in steps and its factor; `decay_share` is the last share of the steps in which
    warm-up-stable-decay falls.
    """

    name: str
    peak: float
    total: int
    warmup: int = 0
    floor: float = 0.0
    period: int = 1
    growth: int = 2
    every: int = 1
    gamma: float = 0.1
    decay_share: float = 0.2


def of(config: settings.Schedule, peak: float, epochs: int, steps: int) -> Schedule:
    """The schedule of the settings over `epochs` epochs of `steps` steps; `peak` is the resolved rate."""
    return Schedule(
        config.name,
        peak,
        total=epochs * steps,
        warmup=round(config.warmup_epochs * steps),
        floor=config.min_lr_ratio * peak,
        period=max(round(config.t_0 * steps), 1),
        growth=config.t_mult,
        every=max(round(config.step_epochs * steps), 1),
        gamma=config.gamma,
        decay_share=config.decay_share,
    )


def learning_rate(schedule: Schedule, step: float) -> float:
    """The rate of 0-based `step`, which may lie between two.

    The warm-up is torch's LinearLR with start_factor 1 / warmup.
    """
    if step < schedule.warmup:
        return schedule.peak * (step + 1) / schedule.warmup
    return SHAPES[schedule.name](schedule, step - schedule.warmup, max(schedule.total - schedule.warmup, 1))


def _between(schedule: Schedule, share: float) -> float:
    """Half a cosine wave from `peak` at share 0 to `floor` at share 1."""
    return schedule.floor + (schedule.peak - schedule.floor) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def _cosine(schedule: Schedule, step: float, length: int) -> float:
    """torch's CosineAnnealingLR with T_max = length (Loshchilov and Hutter 2017)."""
    return _between(schedule, step / length)


def _restarts(schedule: Schedule, step: float, _length: int) -> float:
    """torch's CosineAnnealingWarmRestarts with T_0 = period and T_mult = growth."""
    period = schedule.period
    while step >= period:
        step, period = step - period, period * schedule.growth
    return _between(schedule, step / period)


def _one_cycle(schedule: Schedule, step: float, length: int) -> float:
    """torch's OneCycleLR with its defaults: 30% up from peak / 25 and down to peak / 25e4, both as cosines; `floor`
    has no effect."""
    up = 0.3 * length - 1
    low, end = schedule.peak / 25, schedule.peak / 25e4
    if step <= up:
        return low + (schedule.peak - low) * 0.5 * (1 - math.cos(math.pi * step / max(up, 1)))
    share = (step - up) / max(length - 1 - up, 1)
    return end + (schedule.peak - end) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def _wsd(schedule: Schedule, step: float, length: int) -> float:
    """Constant, then linear to `floor` over the last `decay_share` of the steps (Hu et al. 2024, MiniCPM)."""
    falling = max(schedule.decay_share * length, 1)
    share = min(max((step - (length - falling)) / falling, 0.0), 1.0)
    return schedule.peak + (schedule.floor - schedule.peak) * share


def _linear(schedule: Schedule, step: float, length: int) -> float:
    """torch's LinearLR from `peak` to `floor` over the whole length."""
    return schedule.peak + (schedule.floor - schedule.peak) * min(step / length, 1.0)


def _step(schedule: Schedule, step: float, _length: int) -> float:
    """torch's StepLR, never below `floor`."""
    return max(schedule.peak * schedule.gamma ** (step // schedule.every), schedule.floor)


def _constant(schedule: Schedule, _step: float, _length: int) -> float:
    return schedule.peak


# `config.sections.train` reads the names here.
SHAPES: dict[str, Callable[[Schedule, float, int], float]] = {
    "cosine": _cosine,
    "cosine_restarts": _restarts,
    "one_cycle": _one_cycle,
    "wsd": _wsd,
    "linear": _linear,
    "step": _step,
    "constant": _constant,
    "plateau": _constant,
}


def ema_decay(decay: float, step: int) -> float:
    """The decay of 0-based `step`, warmed up as (1 + n) / (10 + n) for n = step + 1, so that the first weights are
    soon forgotten."""
    return min(decay, (2 + step) / (11 + step))
