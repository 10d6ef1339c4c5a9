"""torch's errors that a user can mend as those of `config.errors`: out of memory, in its many words, above all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from config.errors import ConfigError, OutOfMemory

# CUDA's and MPS's allocators, cuBLAS, cuDNN, cuFFT, and the allocator of the CPU.
_SAYS = re.compile(r"out of memory|ALLOC(ATION)?_FAILED|can't allocate memory", re.IGNORECASE)
# What CUDA's libraries say when they find no memory for their workspaces, and for other reasons too.
_MAY_MEAN = re.compile(
    r"unable to find an engine|FIND was unable|CUBLAS_STATUS_NOT_INITIALIZED|CUBLAS_STATUS_EXECUTION_FAILED"
    r"|CUDNN_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR|EXECUTION_FAILED)|CUSOLVER_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR)",
    re.IGNORECASE,
)
_FULL = 0.05  # share of the device's memory: with less of it free, these mean that it is full


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raises `OutOfMemory` for torch's own errors of that meaning, and `ConfigError` for an operation that
    `train.deterministic` does not have."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "does not have a deterministic implementation" in text:
            what = text.partition(" does not have")[0]
            raise ConfigError(
                f"train.deterministic: torch has no such {what} on this device; set it to false"
            ) from None
        certain = isinstance(error, torch.OutOfMemoryError) or _SAYS.search(text)
        if not certain and not (_MAY_MEAN.search(text) and _is_full()):
            raise
        first = text.partition("\n")[0]
        raise OutOfMemory(f"torch: {first} Lower train.micro_batch, or set train.checkpoint_gradients true") from None


def _is_full() -> bool:
    """Whether the current CUDA device has next to no memory left outside of torch's allocator."""
    if not torch.cuda.is_available():
        return False
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:  # the device answers nothing any more: the first error tells why
        return False
    return bool(free < _FULL * total)
