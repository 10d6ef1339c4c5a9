"""Out of memory, in torch's many words, as the one error of `config.errors`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from config.errors import OutOfMemory

# CUDA's and MPS's allocators, cuBLAS, and the allocator of the CPU.
_SAYS = re.compile(r"out of memory|ALLOC_FAILED|can't allocate memory", re.IGNORECASE)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raises `OutOfMemory` for torch's own errors of that meaning."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not _SAYS.search(str(error)):
            raise
        first = str(error).partition("\n")[0]
        raise OutOfMemory(f"torch: {first} Lower train.micro_batch, or set train.checkpoint_gradients true") from None
