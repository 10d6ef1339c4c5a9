"""How many cores this process may use: what its affinity and the CPU quotas of its control groups leave.

A quota is what `docker run --cpus`, Kubernetes limits, Slurm and systemd's CPUQuota set. The files are those of Linux's
cgroup v2 (`cpu.max`) and v1 (`cpu.cfs_quota_us`); the tightest of a group and of all groups above it holds.
torchrun and mlx.launch bind nothing, so that the processes that they start on a host share its cores evenly.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from config.launch import Launch

_V1_MOUNTS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")


def cores(root: Path = Path("/")) -> int:
    """Usable cores, at least 1; a quota of 2.5 counts as 3. `root` is where `proc` and `sys` are."""
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    usable = min([allowed, *(math.ceil(quota) for quota in _quotas(root))])
    launch = Launch.of(os.environ)
    sharing = launch.local_world_size if launch.launcher in ("torchrun", "mlx.launch") else 1
    return max(usable // sharing, 1)


def _quotas(root: Path) -> Iterator[float]:
    """The limits in cores, of every group that has one."""
    for folder in _groups(root):
        version_1 = f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"
        text = _read(folder / "cpu.max") or version_1
        try:
            quota, period = (int(word) for word in text.split())
        except ValueError:  # "max 100000", or no files
            continue
        if quota > 0 and period > 0:
            yield quota / period


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's groups and of those above them.

    In a container `proc/self/cgroup` may name a path of the host, of which only the top is mounted: folders that do not
    exist have no limits.
    """
    mounted = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        names = [segment for segment in path.split("/") if segment not in ("", "..")]
        tops = [mounted / name for name in _V1_MOUNTS] if controllers else [mounted, mounted / "unified"]
        for top in tops:
            for depth in range(len(names), -1, -1):
                yield top.joinpath(*names[:depth])


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
