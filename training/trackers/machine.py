"""What a training uses of the machine between two calls: processor, memory, disk, network, GPU or chip.

Of Apple's chips only the memory is known, since they report their load to root alone.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

_GIB = 2**30
_PATIENCE = 5.0  # seconds for nvidia-smi
_GPU = {"gpu_percent": "utilization.gpu", "gpu_memory_gib": "memory.used", "gpu_watts": "power.draw"}


def started(session: Mapping[str, Any]) -> str:
    """A session's description as the line of its start: the device, the precision, whether it is compiled, and a remark
    where the engine has one."""
    mode = session.get("compile_mode") or "default"
    compiled = ("compiled" if mode == "default" else f"compiled ({mode})") if session["compiled"] else "not compiled"
    several = f"{session['processes']} processes" if session.get("processes", 1) > 1 else ""
    deterministic, remark = "deterministic" * session.get("deterministic", False), session.get("remark", "")
    words = filter(None, (session["device"], several, session["precision"], compiled, deterministic))
    return ", ".join(words) + (f" ({remark})" if remark else "")


class Machine:
    """`describe` is the session's; `folder` is on the disk whose free space counts."""

    def __init__(self, describe: Callable[[], dict[str, Any]], folder: Path):
        self._describe, self._folder = describe, folder
        psutil.cpu_percent()  # the first answer means nothing
        self._read, self._sent = _traffic()

    def used(self) -> dict[str, float]:
        """CPU in percent of all cores, GiB of memory and free disk, and what was read and sent since the last call."""
        (read, sent), session = _traffic(), self._describe()
        figures = {
            "cpu_percent": psutil.cpu_percent(),
            "memory_gib": psutil.Process().memory_info().rss / _GIB,
            "machine_memory_percent": psutil.virtual_memory().percent,
            "disk_free_gib": shutil.disk_usage(self._folder).free / _GIB,
            "disk_read_gib": (read - self._read) / _GIB,
            "network_gib": (sent - self._sent) / _GIB,
            "device_memory_gib": max(session["memory"].values(), default=0) / _GIB,
        }
        self._read, self._sent = read, sent
        figures |= nvidia() if session["device"].startswith("cuda") else {}
        return {name: round(value, 3) for name, value in figures.items()}


def nvidia() -> dict[str, float]:
    """Load in percent, memory in GiB and power in watts of the machine's NVIDIA GPUs: the sum, of the load the mean.

    Empty where nvidia-smi does not answer; a figure that it does not know is left out.
    """
    asked = f"--query-gpu={','.join(_GPU.values())}"
    try:
        answer = subprocess.run(
            ["nvidia-smi", asked, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return parsed(answer)


def parsed(text: str) -> dict[str, float]:
    """What `nvidia` gives, of nvidia-smi's lines (a line a GPU: percent, MiB, watts)."""
    columns = zip(*([cell.strip() for cell in line.split(",")] for line in text.splitlines() if line), strict=True)
    figures = {}
    for name, cells in zip(_GPU, columns, strict=False):
        if all(cell.replace(".", "", 1).isdigit() for cell in cells):
            total = sum(map(float, cells))
            figures[name] = {"gpu_percent": total / len(cells), "gpu_memory_gib": total / 1024}.get(name, total)
    return figures


def _traffic() -> tuple[int, int]:
    """Bytes read from disk, and bytes sent and received, until now."""
    disk, network = psutil.disk_io_counters(), psutil.net_io_counters()  # each None in some containers
    return disk.read_bytes if disk else 0, network.bytes_sent + network.bytes_recv if network else 0
