"""Which samples an epoch draws, and how often: plain, balanced, oversampled to a count, and mined.

Everything is a function of (seed, epoch) and, for mining, of the saved state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from config.errors import ConfigError
from config.sections.data import Sampling
from data.loading.sampler import epoch_order
from data.rng import philox

Index = NDArray[np.int64]


def pool(labels: Index, kind: str, raise_to: Mapping[int, int], seed: int, epoch: int) -> Index:
    """The samples of one epoch, unordered: every index once, then what balancing adds.

    kind "plain" adds nothing; "balanced" gives each class as many draws as the others and "square_root" in proportion
    to the root of its size, both with the epoch's length unchanged. `raise_to` maps a class to the count that it is
    raised to.
    """
    rng = philox(seed, "pool", epoch)
    counts = np.bincount(labels)
    if kind == "plain":
        wanted = counts.copy()
    else:
        share = (counts > 0) * (1.0 if kind == "balanced" else np.sqrt(counts))
        wanted = _apportion(share / share.sum(), len(labels))
    for label, count in raise_to.items():
        wanted[label] = max(wanted[label], count)
    return np.concatenate([draw(np.flatnonzero(labels == c), int(k), rng) for c, k in enumerate(wanted) if counts[c]])


def raise_to(settings: Sampling, class_names: Sequence[str]) -> dict[int, int]:
    """The classes to raise, by number, and their counts; `ConfigError` for a class that the data does not have."""
    unknown = [name for name in settings.oversample_classes if name not in class_names]
    if unknown:
        shown = ", ".join(list(class_names)[:10])
        raise ConfigError(
            f"sampling.oversample_classes: the data has no class {unknown[0]!r}; its classes are {shown}, ..."
        )
    count = settings.oversample_to
    return {list(class_names).index(name): count for name in settings.oversample_classes if count}


def order(drawn: Index, hard: Index, seed: int, epoch: int) -> Index:
    """One global order of an epoch. The first `len(hard)` places of the shuffled `drawn` go to mined samples, and all
    is shuffled again, so that an epoch's length does not depend on mining."""
    shuffled = drawn[epoch_order(len(drawn), seed, epoch)]
    if not len(hard):
        return shuffled
    shuffled[: len(hard)] = hard
    return shuffled[philox(seed, "mined order", epoch).permutation(len(shuffled))]


def effective_number_weights(labels: Index, classes: int, beta: float = 0.999) -> NDArray[np.float32]:
    """Class weights of mean 1 in inverse proportion to the effective number of samples (Cui et al. 2019)."""
    counts = np.bincount(labels, minlength=classes)
    weights = np.where(counts > 0, (1 - beta) / (1 - np.power(beta, np.maximum(counts, 1))), 0.0)
    return (weights * (counts > 0).sum() / weights.sum()).astype(np.float32)


def draw(members: Index, count: int, rng: np.random.Generator) -> Index:
    """`count` of the members, each as often as the others, give or take one."""
    rounds = [rng.permutation(members) for _ in range(-(-count // len(members)))]
    return np.concatenate(rounds)[:count] if rounds else members[:0]


def _apportion(share: Sequence[float] | NDArray[np.float64], total: int) -> Index:
    """Whole numbers in proportion to `share` that add up to `total` (largest remainders)."""
    exact = np.asarray(share) * total
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts
