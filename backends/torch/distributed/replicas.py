"""What the devices of several processes exchange in an update: gradients through DistributedDataParallel, losses,
running statistics, and for Mixup and CutMix the images. Each process has a copy of the network, equal to the bit.

What the processes say on the host stands in `group`.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from backends.contract import Weights
from backends.group import Group
from backends.torch import model
from backends.torch.compiling import Forward
from config.errors import ConfigError


class Replicas:
    """The copies of a network in the processes of a group, and this one's `forward` of it, compiled or not. Alone it is
    that forward, and all else does nothing.

    The first update, and the first after other parameters are trained, shows which of them get gradients, as a network
    may have some that nothing uses; DistributedDataParallel, which wants to know, begins with the second.
    """

    def __init__(self, group: Group, network: nn.Module, forward: Forward):
        self._rank, self.count = group.rank, group.world_size
        self._forward, self._module = forward, _Module(network, forward)
        self.parameters: dict[str, nn.Parameter] = dict(network.named_parameters())
        self._parallel: DistributedDataParallel | None = None

    def __call__(self, pixels: Tensor) -> Tensor:
        """The logits of this process's images."""
        logits: Tensor = (self._parallel or self._forward)(pixels)
        return logits

    def reset(self) -> None:
        """Begin anew, as other parameters are trained from now on."""
        if self._parallel is not None:
            self._parallel = None
            gc.collect()  # its hooks end with it

    def reduce_(self) -> None:
        """Add up over all processes the gradients that have not been yet, after the last part of a batch."""
        if self.count == 1 or self._parallel is not None:
            return
        unused = []
        for parameter in self._module.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
            elif parameter.requires_grad:
                unused.append(parameter.requires_grad_(False))
        self._parallel = _parallel(self._module)
        for parameter in unused:
            parameter.requires_grad_(True)

    def waiting(self, last: bool) -> AbstractContextManager[None]:
        """Around a part of a batch: its gradients stay here, until the `last` part's travel with them."""
        return nullcontext() if self._parallel is None or last else self._parallel.no_sync()

    def mine(self, rows: Tensor) -> Tensor:
        """This process's of the whole batch's rows."""
        return rows if self.count == 1 else rows.chunk(self.count)[self._rank]

    def gather(self, rows: Tensor) -> Tensor:
        """The whole batch's rows, of those of each process."""
        if self.count == 1:
            return rows
        every = rows.new_empty((self.count * len(rows), *rows.shape[1:]))
        dist.all_gather_into_tensor(every, rows.contiguous())
        return every

    @torch.no_grad()
    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Make the tensors their mean over all processes."""
        held = list(tensors)
        if self.count == 1 or not held:
            return
        flat = torch.cat([t.flatten() for t in held])
        dist.all_reduce(flat)
        means = (flat / self.count).split([t.numel() for t in held])
        torch._foreach_copy_(held, [mean.view_as(t) for t, mean in zip(held, means, strict=True)])

    def norm(self, norm: Tensor) -> Tensor:
        """The norm of the gradients, of that of those which this process holds: all of them."""
        return norm

    def shape(self, name: str, tensor: Tensor) -> tuple[int, ...]:
        """The shape in canonical form of a tensor of that name which this process holds."""
        del name
        return tuple(tensor.shape)

    def arrays(self, tensors: dict[str, Tensor]) -> Weights:
        """The tensors in canonical form on rank 0; none on the others."""
        return model.to_arrays(tensors) if self._rank == 0 else {}

    def copy_(self, tensors: dict[str, Tensor], arrays: Weights) -> None:
        """Copy canonical arrays into the tensors of the same names."""
        model.copy_into(tensors, arrays)

    def close(self) -> None:
        """Let go of what DistributedDataParallel holds."""
        self.reset()


def synchronised(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with torch's SyncBatchNorm in the place of BatchNorm, whose names stay. Not for a session that
    is alone in a process of several: it would wait for theirs."""
    if device.type != "cuda":
        raise ConfigError(
            f"train.sync_batch_norm: torch has it for NVIDIA GPUs, not for {device.type}; set it to false"
        )
    converted: nn.Module = convert_sync_batchnorm(network)
    return converted


class _Module(nn.Module):
    """A network's forward pass, compiled or not, as the module that DistributedDataParallel asks for."""

    def __init__(self, network: nn.Module, forward: Forward):
        super().__init__()
        self.network = network
        self.run = (forward,)  # in a tuple, since a compiled form is a module of the same parameters

    def forward(self, pixels: Tensor) -> Tensor:
        return self.run[0](pixels)


def _parallel(module: nn.Module) -> DistributedDataParallel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.15 has a new name for broadcast_buffers
        parallel = DistributedDataParallel(
            module, broadcast_buffers=False, init_sync=False, gradient_as_bucket_view=True
        )
    # It says so of kernels of one pixel, whose strides mean nothing.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    parallel.register_comm_hook(None, lambda _, bucket: summed(bucket))
    return parallel


def summed(bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The sum of a bucket's gradients over all processes: the shares of their losses add up to one already."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])
