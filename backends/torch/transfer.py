"""Arrays to the device and results back, without waiting for it.

On CUDA both go through pinned memory. What goes there is copied on a stream of its own, beside the arithmetic of the
updates before it; a pageable copy would wait for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Pending(NamedTuple):
    """A result on its way to the host. On CUDA `began` and `ready` are the events of the update's begin and of the
    result's arrival; elsewhere they are None."""

    packed: Tensor
    began: torch.cuda.Event | None
    ready: torch.cuda.Event | None


class Transfer:
    """The way to one device and back."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
        """The arrays on the device. They may be written over when it returns, except on the CPU, where the tensors are
        the arrays."""
        hosts = [torch.from_numpy(np.require(array, requirements=("C", "W"))) for array in arrays]
        if self._stream is None:
            return [host.to(self._device) for host in hosts]
        with torch.cuda.stream(self._stream):
            sent = [host.pin_memory().to(self._device, non_blocking=True) for host in hosts]
        now = torch.cuda.current_stream(self._device)
        now.wait_stream(self._stream)
        for tensor in sent:
            tensor.record_stream(now)  # its memory belongs to the other stream
        return sent

    def begin(self) -> torch.cuda.Event | None:
        """The moment at which the device comes to what is enqueued next; None where it computes at once."""
        return self._mark() if self._stream is not None else None

    def returning(self, packed: Tensor, began: torch.cuda.Event | None) -> Pending:
        """A result on its way, into pinned memory, as torch makes it for a copy that does not block."""
        if self._stream is None:
            return Pending(packed, None, None)
        host = packed.to("cpu", non_blocking=True)
        return Pending(host, began, self._mark())

    def _mark(self) -> torch.cuda.Event:
        # A blocking event lets the waiting thread sleep; the other kind keeps a core from decoding images.
        event = torch.cuda.Event(enable_timing=True, blocking=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def arrived(pending: Pending) -> tuple[NDArray[np.float32], float]:
    """Wait for a result, and not for what was enqueued after it: the array, and the seconds that the device worked on
    it, 0 where they are not known."""
    seconds = 0.0
    if pending.ready is not None:
        pending.ready.synchronize()
        if pending.began is not None:
            seconds = pending.began.elapsed_time(pending.ready) / 1000
    return pending.packed.cpu().numpy(), seconds
