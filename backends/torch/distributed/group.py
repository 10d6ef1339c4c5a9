"""The processes that torchrun, or another launcher with torch's variables, started: their talk on the host, over gloo.

What the devices exchange in a step stands in `replicas`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from backends.group import ALONE
from backends.group import Group as AnyGroup
from backends.torch.devices import best_device
from config.errors import BackendUnavailable, ConfigError, GroupLost
from config.launch import Launch

_WAIT = timedelta(minutes=30)  # torch's own limit: rank 0 may prepare data that long while the others wait


def join(launch: Launch) -> AnyGroup:
    """The group of the processes that a launcher started; see `backends.contract.Backend`."""
    if not launch.several:
        return ALONE
    # What torch reads, where another launcher than torchrun set names of its own.
    for name in ("rank", "local_rank", "world_size", "local_world_size"):
        os.environ.setdefault(name.upper(), str(getattr(launch, name)))
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"{launch.launcher}: {launch.world_size} processes and no {missing[0]} to meet at; start torchrun on each "
            "host (srun torchrun ...), or set MASTER_ADDR to the first host and MASTER_PORT to a free port"
        )
    if not dist.is_available():
        raise BackendUnavailable(f"torch {torch.__version__} is built without torch.distributed; start one process")
    device = best_device()
    if device.type == "mps":
        raise BackendUnavailable(
            "torch trains on one MPS device alone; start train_mlx.py with mlx.launch, or one process without torchrun"
        )
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and launch.local_world_size > gpus:
        raise ConfigError(
            f"{launch.launcher}: {launch.local_world_size} processes on this host and {gpus} GPUs; start one for each "
            f"GPU (--nproc_per_node {gpus})"
        )
    with lost():
        store, rank, count = next(dist.rendezvous("env://", timeout=_WAIT))
        # After a restart torchrun's store still has the addresses of processes that are gone.
        fresh = dist.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=count, timeout=_WAIT)
        return Group(dist.new_group(backend="gloo", timeout=_WAIT))


@contextmanager
def lost() -> Iterator[None]:
    """`GroupLost` for torch's errors about processes that ended or do not answer."""
    try:
        yield
    except dist.DistError as error:  # of the rendezvous, and of NCCL
        raise GroupLost(_text(error)) from error
    except RuntimeError as error:
        if not any(word in str(error) for word in _SIGNS):
            raise
        raise GroupLost(_text(error)) from error


# How gloo, its sockets and torch's store begin what they say of such processes.
_SIGNS = ("[../", "gloo", "Connection closed by peer", "Connection reset", "Timed out", "timed out", "Broken pipe")


def _text(error: Exception) -> str:
    first = str(error).partition("\n")[0]
    return f"another process of the group has ended or does not answer ({first[:200]}); its log tells why, start again"


class Group:
    """See `backends.group.Group`."""

    def __init__(self, host: dist.ProcessGroup):
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._host = host

    def gather(self, rows: NDArray[Any], even: bool = False) -> NDArray[Any]:
        """The rows of all ranks, one rank after another."""
        if even:
            mine = np.ascontiguousarray(rows)
            gathered = np.empty((self.world_size, *mine.shape), mine.dtype)
            buffers = list(torch.from_numpy(gathered.view(np.uint8).reshape(self.world_size, -1)))
            with lost():
                dist.all_gather(buffers, torch.from_numpy(mine.view(np.uint8).reshape(-1)), group=self._host)
            return gathered.reshape(-1, *mine.shape[1:])
        every: list[Any] = [None] * self.world_size
        with lost():
            dist.all_gather_object(every, rows, group=self._host)
        return np.concatenate([array for array in every if len(array)] or every[:1])

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value`."""
        values = [value if self.rank == 0 else None]
        with lost():
            dist.broadcast_object_list(values, src=0, group=self._host)
        return values[0]

    def close(self) -> None:
        """Leave the group, after all is done."""
        with lost():
            dist.barrier(group=self._host)
        dist.destroy_process_group()
