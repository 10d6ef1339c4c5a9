"""A trace of what the session does between two moments, by torch's profiler: `trace.json` and `table.txt`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

_ROWS = 15


@contextmanager
def traced(folder: Path, device: torch.device) -> Iterator[None]:
    """Record host and device; at the end, once the device is done, write Chrome's trace and the costliest operations.

    The trace opens in chrome://tracing or ui.perfetto.dev.
    """
    on_gpu = device.type == "cuda"
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its library writes notes about every start to stderr
    folder.mkdir(parents=True, exist_ok=True)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as recorded:
        yield
        if on_gpu:
            torch.cuda.synchronize(device)
    recorded.export_chrome_trace(str(folder / "trace.json"))
    costliest = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table = recorded.key_averages().table(sort_by=costliest, row_limit=_ROWS, max_name_column_width=50)
    (folder / "table.txt").write_text(table)
