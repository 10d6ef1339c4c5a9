"""Out of memory, in MLX's words, as the one error of `config.errors`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from config.errors import OutOfMemory

# "[metal::malloc] Unable to allocate N bytes", "[metal::malloc] Attempting to allocate N bytes which is greater than
# the maximum allowed buffer size", "[METAL] Command buffer execution failed: Insufficient Memory".
_SAYS = re.compile(r"malloc|(unable|attempting) to allocate|insufficient memory|out of memory", re.IGNORECASE)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raises `OutOfMemory` for MLX's own errors of that meaning."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not _SAYS.search(str(error)):
            raise
        raise OutOfMemory(
            f"MLX: {error or 'no memory'}; lower train.micro_batch, or set train.checkpoint_gradients true"
        ) from None
