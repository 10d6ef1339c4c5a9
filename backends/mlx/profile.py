"""A trace of what the session does between two moments, by Metal's own capture: `trace.gputrace`, for Xcode."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import mlx.core as mx

from config.errors import BackendUnavailable

_SWITCH = "MTL_CAPTURE_ENABLED"  # Metal's own; it is read when the process starts


def traced(folder: Path) -> AbstractContextManager[None]:
    """Capture the device; `BackendUnavailable`, at once, where Metal is not there or does not allow it."""
    if not mx.metal.is_available():
        raise BackendUnavailable("profile: MLX traces Metal alone, and this machine has none; leave --profile out")
    if os.environ.get(_SWITCH) != "1":
        raise BackendUnavailable(f"profile: Metal captures only where {_SWITCH}=1 is set; put it before the command")
    return _captured(folder)


@contextmanager
def _captured(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    trace = folder / "trace.gputrace"
    shutil.rmtree(trace, ignore_errors=True)  # Metal writes over nothing
    mx.synchronize()
    mx.metal.start_capture(str(trace))
    try:
        yield
        mx.synchronize()
    finally:
        mx.metal.stop_capture()
