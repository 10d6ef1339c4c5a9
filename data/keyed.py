"""The only source of randomness: counter-based generators keyed by what they are for.

The same key gives the same numbers on every machine, for any number of workers, and wherever a run resumed.
"""

from __future__ import annotations

import hashlib

import numpy as np


def rng(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """A Philox generator for (seed, purpose, key...), such as `rng(0, "augment", epoch, sample)`."""
    return np.random.Generator(np.random.Philox(key=_digest(seed, purpose, key)))


def number(seed: int, purpose: str, *key: int) -> int:
    """A 63-bit integer for the same kind of key: what seeds a device's own generator for one step."""
    return int(_digest(seed, purpose, key)[0] >> np.uint64(1))


def _digest(seed: int, purpose: str, key: tuple[int, ...]) -> np.ndarray:
    text = f"{seed}|{purpose}|" + "|".join(str(int(k)) for k in key)
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype="<u8")
