"""A network whose parameters, moments and averages are spread over the processes of a group (FSDP2), for networks that
do not fit into one device's memory. Each block is gathered for its passes and let go again.

An optimizer works on this process's own rows of each tensor, which are plain tensors; whole ones are made for
checkpoints alone, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from backends.contract import Weights
from backends.group import Group
from backends.torch.distributed.replicas import Replicas
from backends.torch.model import local


class Sharded(Replicas):
    """`network` and its moving `average`, both spread; otherwise as `Replicas`."""

    def __init__(self, group: Group, network: nn.Module, average: nn.Module | None, device: torch.device):
        super().__init__(group, network, network)
        self._network = network
        self._shapes = {name: tuple(t.shape) for name, t in network.state_dict(keep_vars=True).items()}
        mesh = init_device_mesh(device.type, (group.world_size,))
        for module in (network, average):
            if module is not None:
                _spread(module, mesh)
        self.parameters = {name: nn.Parameter(local(p)) for name, p in network.named_parameters()}

    def reduce_(self) -> None:
        """Hand the optimizer the gradients of this process's rows."""
        for name, parameter in self._network.named_parameters():
            self.parameters[name].grad = None if parameter.grad is None else local(parameter.grad)
            parameter.grad = None

    def waiting(self, last: bool) -> AbstractContextManager[None]:
        """As `Replicas.waiting`."""
        self._network.set_requires_gradient_sync(last)
        return nullcontext()

    def norm(self, norm: Tensor) -> Tensor:
        """The norm of whole gradients, of those of this process's rows."""
        squares = norm.square()
        dist.all_reduce(squares)
        return squares.sqrt()

    def shape(self, name: str, tensor: Tensor) -> tuple[int, ...]:
        """The whole tensor's, by its name in the network or in the optimizer."""
        del tensor
        return self._shapes[self._parameter(name)]

    def _parameter(self, name: str) -> str:
        return name if name in self._shapes else name.partition(".")[2]

    def arrays(self, tensors: dict[str, Tensor]) -> Weights:
        """Whole arrays on rank 0, and none on the others; one after the other."""
        arrays: Weights = {}
        for name, tensor in tensors.items():
            values = tensor.detach()
            if self._parameter(name) in self.parameters:
                values = self._gathered(values, self.shape(name, tensor))
            if self._rank == 0:
                arrays[name] = values.float().cpu().numpy().copy()
        return arrays

    def _gathered(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        sizes = [len(share) for share in _shares(shape[0], self.count)]
        padded = rows.new_zeros((sizes[0], *shape[1:]))
        padded[: len(rows)] = rows
        every = padded.new_empty((self.count * sizes[0], *shape[1:]))
        dist.all_gather_into_tensor(every, padded)
        return torch.cat([share[:size] for share, size in zip(every.split(sizes[0]), sizes, strict=True)])

    @torch.no_grad()
    def copy_(self, tensors: dict[str, Tensor], arrays: Weights) -> None:
        """Copy this process's rows of whole arrays into the tensors of the same names."""
        for name, array in arrays.items():
            mine: NDArray[np.float32] = array
            if self._parameter(name) in self.parameters:
                mine = array[_shares(len(array), self.count)[self._rank]]
            tensors[name].copy_(torch.from_numpy(np.ascontiguousarray(mine, dtype=np.float32)))


def _shares(rows: int, count: int) -> list[NDArray[np.int64]]:
    """The rows of each process, as `torch.chunk` shares them out; the last may have none."""
    size = -(-rows // count)
    return [np.arange(min(i * size, rows), min((i + 1) * size, rows)) for i in range(count)]


def _spread(network: nn.Module, mesh: DeviceMesh) -> None:
    for block in blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)  # else an evaluation leaves weights that age
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
            module.set_gradient_divide_factor(1.0)  # the shares of the losses add up to one over all processes


def blocks(network: nn.Module) -> Iterable[nn.Module]:
    """The smallest modules that a list of the network repeats, such as its residual blocks."""
    for module in network.modules():
        for child in module.children() if isinstance(module, nn.Sequential | nn.ModuleList) else ():
            if (
                any(True for _ in child.parameters())
                and not any(map(_repeats, child.modules()))
                and list(child.children())
            ):
                yield child


def _repeats(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList) and len(module) > 0
