"""The micro-batch on a device whose memory is not known beforehand.

The effective batch never changes, only `train.micro_batch`, which is computed at once. It is found by trying, halved
when memory runs out, and written into the fold's folder, since BatchNorm sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.errors import OutOfMemory
from config.places import atomic_write

_FILE = "micro_batch.txt"


def remembered(fold: Path) -> int:
    """The micro-batch that an earlier start of the fold came to; 0 where it came to none."""
    file = fold / _FILE
    return int(file.read_text()) if file.exists() else 0


def remember(fold: Path, size: int) -> None:
    """Keep the micro-batch for the next start."""
    atomic_write(fold / _FILE, f"{size}\n")


def check_limit(described: Mapping[str, Any]) -> None:
    """`OutOfMemory` where a session's `describe()` has a peak above its `memory_limit`: Metal swaps there, which
    is many times slower."""
    limit, peak = described.get("memory_limit"), described["memory"].get("peak", 0)
    if limit and peak > limit:
        raise OutOfMemory(f"{peak / 2**30:.1f} GiB were taken, {limit / 2**30:.1f} is what the device recommends")


def half(size: int, batch: int, fewest: int) -> int:
    """The largest divisor of the batch up to half of `size`; 0 where that is below the `fewest` images that the network
    trains on at a time."""
    return max((micro for micro in range(fewest, size // 2 + 1) if batch % micro == 0), default=0)


def halved(size: int, batch: int, cause: OutOfMemory, fewest: int = 1) -> int:
    """As `half`; the cause as an error where that is 0."""
    if micro := half(size, batch, fewest):
        return micro
    raise OutOfMemory(
        f"not even {'one image at a time fits' if size == 1 else f'{size} images at a time fit'} ({cause}); set "
        "train.checkpoint_gradients true, or choose a smaller data.image_size or model"
    ) from None
