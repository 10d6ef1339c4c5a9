"""How many cores a process may use: affinity and the quotas of control groups, read from a tree of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data.cores import cores

V2 = "0::/pod/container\n"
V1 = "5:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab\n0::/\n"


@pytest.fixture(autouse=True)
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (V2, {}, 16),
        (V2, {"pod/container/cpu.max": "max 100000"}, 16),
        (V2, {"pod/container/cpu.max": "400000 100000"}, 4),
        (V2, {"pod/container/cpu.max": "250000 100000"}, 3),
        (V2, {"pod/container/cpu.max": "50000 100000"}, 1),
        (V2, {"pod/container/cpu.max": "6400000 100000"}, 16),
        # A group above is tighter; what is no group of this process does not count.
        (V2, {"pod/container/cpu.max": "800000 100000", "pod/cpu.max": "200000 100000"}, 2),
        (V2, {"other/cpu.max": "100000 100000"}, 16),
        # In a container the group's own folder is what is mounted.
        ("0::/\n", {"cpu.max": "300000 100000"}, 3),
        ("0::/../../pod\n", {"cpu.max": "300000 100000"}, 3),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 16),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "150000", "cpu,cpuacct/cpu.cfs_period_us": "50000"}, 3),
        (V1, {"cpu/docker/ab/cpu.cfs_quota_us": "200000", "cpu/docker/ab/cpu.cfs_period_us": "100000"}, 2),
        (V1, {"memory/cpu.max": "100000 100000"}, 16),
        ("", {"cpu.max": "100000 100000"}, 16),
    ],
)
def test_quotas_of_both_versions_bound_the_cores(
    groups: str, files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cores(tmp_path) == expected


def test_affinity_bounds_the_cores_and_no_files_are_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert cores(tmp_path) == 2
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("400000 100000\n")
    assert cores(tmp_path) == 2


def test_processes_of_torchrun_share_the_cores_of_their_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert cores(tmp_path) == 2
