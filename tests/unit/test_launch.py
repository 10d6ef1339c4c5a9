"""Rank and world size as launchers give them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from config.errors import ConfigError
from config.launch import Launch


def test_without_a_launcher_a_process_is_alone() -> None:
    assert Launch.of({"RANK": "3", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == Launch(0, 0, 1, 1, "")
    assert not Launch.of({}).several


def test_torchrun_itself_is_understood(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch.distributed.run")
    script = tmp_path / "say.py"
    script.write_text(
        "import os\nfrom pathlib import Path\nfrom config.launch import Launch\nlaunch = Launch.of(os.environ)\n"
        "Path(__file__).with_name(f'rank_{launch.rank}').write_text(str(launch))\n"
    )
    command = [sys.executable, "-m", torch.__name__, "--nproc_per_node=2", "--standalone", str(script)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=env, capture_output=True, timeout=120, check=True)
    for rank in (0, 1):
        assert (tmp_path / f"rank_{rank}").read_text() == str(Launch(rank, rank, 2, 2, "torchrun"))


def test_kubernetes_sets_no_local_rank() -> None:
    assert Launch.of({"RANK": "2", "WORLD_SIZE": "4"}) == Launch(2, 0, 4, 1, "torchrun")


@pytest.mark.parametrize(
    ("procid", "localid", "node", "expected"),
    [
        (0, 0, 0, Launch(0, 0, 5, 2, "srun")),
        (3, 1, 1, Launch(3, 1, 5, 2, "srun")),
        (4, 0, 2, Launch(4, 0, 5, 1, "srun")),
    ],
)
def test_srun(procid: int, localid: int, node: int, expected: Launch) -> None:
    environ = {
        "SLURM_PROCID": str(procid),
        "SLURM_LOCALID": str(localid),
        "SLURM_NODEID": str(node),
        "SLURM_STEP_NUM_TASKS": "5",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    }
    assert Launch.of(environ) == expected
    # torchrun inside srun: the workers are torchrun's.
    inner = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert Launch.of(environ | inner) == Launch(1, 1, 2, 2, "torchrun")


def test_mlx_launch_names_its_hosts_in_a_file(tmp_path: Path) -> None:
    ring = tmp_path / "ring"
    ring.write_text(json.dumps([["10.0.0.1:5000"], ["10.0.0.1:5001"], ["10.0.0.2:5000"]]))
    assert Launch.of({"MLX_RANK": "1", "MLX_HOSTFILE": str(ring)}) == Launch(1, 1, 3, 2, "mlx.launch")
    assert Launch.of({"MLX_RANK": "2", "MLX_HOSTFILE": str(ring)}) == Launch(2, 0, 3, 1, "mlx.launch")
    jaccl = tmp_path / "jaccl"
    jaccl.write_text(json.dumps([[None, "rdma_en5"], ["rdma_en5", None]]))
    assert Launch.of({"MLX_RANK": "1", "MLX_IBV_DEVICES": str(jaccl)}) == Launch(1, 0, 2, 1, "mlx.launch")
    assert Launch.of({"MLX_RANK": "1", "MLX_WORLD_SIZE": "2"}).world_size == 2
    alone = tmp_path / "alone"
    alone.write_text("\n")
    assert not Launch.of({"MLX_RANK": "0", "MLX_HOSTFILE": str(alone)}).several


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank 2 of 2"),
        ({"MLX_RANK": "1"}, "MLX_RANK"),
        ({"MLX_RANK": "1", "MLX_HOSTFILE": "/nowhere.json"}, "/nowhere.json"),
    ],
)
def test_an_environment_that_cannot_be_is_one_line(environ: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        Launch.of(environ)
    assert "\n" not in str(caught.value)
