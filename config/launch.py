"""Which of how many processes this one is, as its launcher says in the environment."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.errors import ConfigError


@dataclass(frozen=True)
class Launch:
    """Rank among all processes and among those of this host. `launcher` is "" where no launcher says anything."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    launcher: str = ""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Launch:
        """What `os.environ` says. The innermost launcher counts: torchrun and mpirun before the srun that starts them.

        Sources: torchrun's worker environment (also set by Kubernetes' PyTorchJob, without the local ones), Open MPI's
        and SLURM's documented variables, and `mlx._distributed_utils.launch`. Raises `ConfigError` where a variable is
        no number, or a rank is not below its size.
        """
        if "RANK" in environ and "WORLD_SIZE" in environ:
            return _of_names(environ, "torchrun", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        if "MLX_RANK" in environ:
            return _of_mlx(environ)
        if "OMPI_COMM_WORLD_SIZE" in environ:
            names = [f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "LOCAL_RANK", "SIZE", "LOCAL_SIZE")]
            return _of_names(environ, "mpirun", *names)
        # srun alone sets the step's number of tasks: the batch script itself also has SLURM_PROCID and SLURM_NTASKS.
        if "SLURM_STEP_NUM_TASKS" in environ and "SLURM_PROCID" in environ:
            node = _number(environ, "SLURM_NODEID", 0)
            counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
            sizes = [count for count, times in counts for _ in range(int(times or 1))]  # "2(x3),1" is 2, 2, 2, 1
            local = {"LOCAL_WORLD_SIZE": sizes[node]} if node < len(sizes) else {}
            slurm = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "LOCAL_WORLD_SIZE")
            return _of_names({**environ, **local}, "srun", *slurm)
        if environ.get("LOCAL_RANK"):  # set by hand, to choose a GPU
            return _of_names(environ, "LOCAL_RANK", "", "LOCAL_RANK", "", "")
        return cls()

    @property
    def several(self) -> bool:
        """Whether the launcher started more than this process."""
        return self.world_size > 1


def _of_names(
    environ: Mapping[str, str], launcher: str, rank: str, local_rank: str, world_size: str, local_world_size: str
) -> Launch:
    local, size = _number(environ, local_rank, 0), _number(environ, world_size, 1)
    launch = Launch(_number(environ, rank, 0), local, size, _number(environ, local_world_size, local + 1), launcher)
    if launch.rank >= launch.world_size or launch.local_rank >= launch.local_world_size:
        raise ConfigError(
            f"{launcher}: rank {launch.rank} of {launch.world_size}, on this host {launch.local_rank} of "
            f"{launch.local_world_size}: a rank is below its size; unset {rank} and {world_size}"
        )
    return launch


def _of_mlx(environ: Mapping[str, str]) -> Launch:
    """mlx.launch gives the rank; the size stands in MLX_WORLD_SIZE (nccl), or is the length of the list in the file of
    MLX_HOSTFILE (ring) or MLX_IBV_DEVICES (jaccl)."""
    rank = _number(environ, "MLX_RANK", 0)
    hosts = _listed(environ, "MLX_HOSTFILE") or _listed(environ, "MLX_IBV_DEVICES")
    size = len(hosts) or _number(environ, "MLX_WORLD_SIZE", 1)
    if rank >= size:
        raise ConfigError(f"mlx.launch: MLX_RANK is {rank} of {size} processes; unset it, or start them by mlx.launch")
    addresses = [_address(entry) for entry in hosts]
    local_ranks = [i for i, address in enumerate(addresses) if address and address == addresses[rank]] or [rank]
    return Launch(rank, local_ranks.index(rank), size, len(local_ranks), "mlx.launch")


def _listed(environ: Mapping[str, str], name: str) -> list[Any]:
    """The list in the JSON file that a variable names; empty where it names none, or mlx.launch wrote none for one
    process."""
    if not environ.get(name):
        return []
    try:
        text = Path(environ[name]).read_text()
        listed = json.loads(text) if text.strip() else []
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: {environ[name]} cannot be read ({error}); give a JSON list of hosts") from error
    if not isinstance(listed, list):
        raise ConfigError(f"{name}: {environ[name]} holds no list; give a JSON list of hosts")
    return listed


def _address(entry: Any) -> str:
    """The host of a ring's entry, a list of IP:PORT; "" for an entry of RDMA devices, of which each host has one."""
    first = entry[0] if isinstance(entry, list) and entry else ""
    return first.rpartition(":")[0] if isinstance(first, str) else ""


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{name}: found {text!r} in the environment; expected a whole number, or unset it")
    return int(text)
