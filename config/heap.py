"""Memory that is freed stays with the process, as it does on a GPU.

By default glibc returns large blocks to the system as they are freed, and the system clears every page of the next
one. A network on the CPU and a decoder allocate the same megabytes again and again: for small networks that is half of
their time (docs/engineering/speed_torch.md). Other systems' allocators keep large blocks by themselves.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

# What malloc.h calls M_TRIM_THRESHOLD (the most that `mallopt` takes), M_MMAP_MAX and M_ARENA_MAX.
_OPTIONS = {-1: 2**31 - 1, -4: 0, -8: 1}
_USER_VARIABLES = ("LD_PRELOAD", "GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_ARENA_MAX")


def retain_freed_memory() -> bool:
    """Have glibc keep up to 2 GiB of freed memory from now on; False where it is not glibc, or the user chose.

    For commands, at their start: threads that have asked for memory before keep to their own.
    """
    libc: Any = ctypes.CDLL(None) if os.name == "posix" else None
    if not hasattr(libc, "gnu_get_libc_version") or any(name in os.environ for name in _USER_VARIABLES):
        return False
    accepted = [libc.mallopt(name, value) for name, value in _OPTIONS.items()]
    return all(accepted)
