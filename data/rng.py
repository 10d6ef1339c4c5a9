"""The only source of randomness: counter-based generators keyed by what they are for.

The same key gives the same numbers on every machine, for any number of workers, and wherever a run resumed.
"""

from __future__ import annotations

import hashlib

import numpy as np


def philox(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """A Philox generator for (seed, purpose, key...), such as `philox(0, "augment", epoch, sample)`."""
    return np.random.Generator(np.random.Philox(_Key(_digest(seed, purpose, key))))  # type: ignore[arg-type]


class _Key(np.random.bit_generator.ISeedSequence):
    """What `Philox(key=...)` is, in a third of its time, which asks the system for entropy first and drops it."""

    def __init__(self, words: np.ndarray):
        self._words = words

    def generate_state(self, n_words: int, dtype: object = np.uint64) -> np.ndarray:  # noqa: ARG002
        """uint64 `[2]`: the key."""
        return self._words


def philox_seed(seed: int, purpose: str, *key: int) -> int:
    """A 63-bit integer for the same kind of key: what seeds a device's own generator for one step."""
    return int(_digest(seed, purpose, key)[0] >> np.uint64(1))


def _digest(seed: int, purpose: str, key: tuple[int, ...]) -> np.ndarray:
    text = f"{seed}|{purpose}|" + "|".join(str(int(k)) for k in key)
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype="<u8")
