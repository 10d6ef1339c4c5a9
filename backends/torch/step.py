"""One training update and one evaluation, as functions of device tensors. Nothing here waits for the device.

Rates, plans and seeds are decided elsewhere and arrive as arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from backends.contract import MemorySpec, OptimSpec, Precision
from backends.torch import compiling, optim
from backends.torch.distributed.replicas import Replicas
from backends.torch.losses import PerSample
from backends.torch.precision import LossScale, autocast
from config.errors import ConfigError


class StepContext(NamedTuple):
    """What one update works on. `replicas` run the model, in its compiled form or not, in all processes of a group.

    `count` and `frozen_count` (int64, 0-d) count the updates and those with a frozen backbone.
    """

    model: nn.Module
    replicas: Replicas
    loss: PerSample
    spec: OptimSpec
    memory: MemorySpec
    parameters: dict[str, nn.Parameter]
    optimizers: list[torch.optim.Optimizer]
    statistics: optim.Statistics
    average: optim.Average | None
    count: Tensor
    frozen_count: Tensor
    scale: LossScale | None


class Input(NamedTuple):
    """How uint8 pixels become the model's input: mean and std of [0, 1] values, `[3]` on the device; its layout."""

    mean: Tensor
    std: Tensor
    channels: int
    precision: Precision
    layout: torch.memory_format = torch.channels_last

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 `[N, H, W, 3]` to float32 `[N, C, H, W]`; one channel is the mean of the normalised three."""
        scaled = ((images.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)
        pixels = scaled if self.channels == 3 else scaled.mean(1, keepdim=True)
        return pixels.contiguous(memory_format=self.layout)


class Rates(NamedTuple):
    """`contract.StepHyperparams` as the floats that a float32 holds, the same numbers that other engines see."""

    lr: float
    weight_decay: float
    ema_decay: float
    clip_norm: float


def train_step(
    context: StepContext, prepare: Input, batch: list[Tensor], plan: list[Tensor] | None, rates: Rates, frozen: bool
) -> Tensor:
    """Apply one update; float32 `[N + 2]` on the device: per-sample losses, gradient norm, 1.0 if all was finite,
    or not so only because the scale of an fp16 loss is too large yet.

    An update that is not finite changes nothing: weights, moments, running statistics, average and counts stay. Of a
    batch that several processes share the images are this one's; all else of it, and the result, is the whole batch's.
    """
    before = context.statistics.copy()
    for optimizer in context.optimizers:
        optimizer.zero_grad(set_to_none=True)
    pixels, targets, share = prepare_inputs(prepare, batch, plan, context.replicas)
    size = context.memory.size(len(pixels))
    chunks = [*zip(pixels.split(size), targets.split(size), context.replicas.mine(share).split(size), strict=True)]
    losses = torch.cat([gradients_of(context, prepare.precision, *c, last=c is chunks[-1]) for c in chunks])
    context.replicas.reduce_()
    losses = context.replicas.gather(losses)
    norm, finite = apply_update(context, (share * losses).sum(), rates, frozen, before)
    return torch.cat([losses, norm[None], finite[None].float()])


def prepare_inputs(
    prepare: Input, batch: list[Tensor], plan: list[Tensor] | None, replicas: Replicas
) -> tuple[Tensor, Tensor, Tensor]:
    """This process's images and targets as the network takes them, mixed, and the share `[N]` of each image of the
    whole batch in the mean loss."""
    images, targets, weights = batch
    pixels, share, mine = prepare(images), weights / weights.sum(), replicas.mine
    if plan is None:
        return pixels, mine(targets), share
    partners = mine(plan[0])
    other = pixels[partners] if replicas.count == 1 else prepare(replicas.gather(images)[partners])
    return *mixup(pixels, other, mine(targets), targets[partners], [mine(rows) for rows in plan[1:]]), share


def mixup(
    pixels: Tensor, other: Tensor, targets: Tensor, other_targets: Tensor, plan: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Mixup and CutMix of `contract.MixPlan`, without its permutation: pixels `[N, C, H, W]` and targets `[N, classes]`
    of images and of their partners."""
    share, box, label_share = plan[0][:, None, None, None], plan[1], plan[2][:, None]
    top, bottom, left, right = (box[:, i, None] for i in range(4))
    rows = torch.arange(pixels.shape[2], device=pixels.device)
    columns = torch.arange(pixels.shape[3], device=pixels.device)
    inside = ((rows >= top) & (rows < bottom))[:, None, :, None] & ((columns >= left) & (columns < right))[
        :, None, None
    ]
    pixels = torch.where(inside, other, share * pixels + (1 - share) * other)
    return pixels, label_share * targets + (1 - label_share) * other_targets


def gradients_of(
    context: StepContext, precision: Precision, pixels: Tensor, targets: Tensor, share: Tensor, last: bool
) -> Tensor:
    """The losses of a part of the batch; its gradients are added to those that are there, with the `last` part those of
    all processes."""
    with context.replicas.waiting(last):
        with autocast(precision, pixels.device):
            logits = context.replicas(pixels)
        losses = context.loss(logits, targets)
        # Computing a block again for its gradient moves its running statistics once more.
        once = context.statistics.copy() if context.memory.recompute else None
        mean = (share * losses).sum()
        (mean if context.scale is None else mean * context.scale.value).backward()
        if once is not None:
            context.statistics.restore(once, torch.zeros((), dtype=torch.bool, device=once.device))
        return losses.detach()


def apply_update(
    context: StepContext, mean: Tensor, rates: Rates, frozen: bool, before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Move everything by the gradients that are there, or nothing where they or the `mean` loss are not finite; the
    gradients' norm, and whether all was finite as `train_step` reports it."""
    if context.scale is not None:
        context.scale.unscale_(context.parameters.values())
    norm = context.replicas.norm(optim.total_norm(context.parameters))
    sound = mean.isfinite()
    finite = sound & norm.isfinite()
    reported = finite
    optim.limit_(context.parameters, context.spec, norm, rates.clip_norm, context.replicas.norm)
    optim.update(context.optimizers, rates.lr, rates.weight_decay, finite)
    if not frozen and not context.spec.fixed_statistics:
        context.replicas.average_(context.statistics.tensors)
    context.statistics.restore(before, finite)
    if context.average is not None:
        context.average.update(rates.ema_decay, finite)
    if context.scale is not None:
        reported = sound & (norm.isfinite() | context.scale.curable())
        context.scale.update(finite)
    context.count.add_(finite)
    if frozen:
        context.frozen_count.add_(finite)
    return norm, reported


@torch.no_grad()
def evaluate(forward: compiling.Forward, prepare: Input, images: Tensor) -> Tensor:
    """float32 `[N, C]` of uint8 `[N, H, W, 3]`; the model is in evaluation mode already."""
    with autocast(prepare.precision, images.device):
        return forward(prepare(images)).float()


def set_mode(context: StepContext, frozen: bool) -> None:
    """Training mode; with `frozen` only the head has gradients. Then, and with fixed statistics, normalisation uses its
    running statistics."""
    trained = context.spec.trained(context.parameters, frozen)
    context.model.train()
    if any(parameter.requires_grad != (name in trained) for name, parameter in context.parameters.items()):
        context.replicas.reset()
    for name, parameter in context.parameters.items():
        parameter.requires_grad_(name in trained)
    for module in context.model.modules() if frozen or context.spec.fixed_statistics else ():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            module.eval()


def checkpoint_blocks(model: nn.Module, name: str) -> None:
    """Have each block computed again for its gradient, by timm; `ConfigError` where `model`, called `name`, cannot."""
    if not hasattr(model, "set_grad_checkpointing"):
        raise ConfigError(f"train.checkpoint_gradients: timm's model {name} does not offer it; set it to false")
    model.set_grad_checkpointing(True)


def dtype_of(precision: Precision) -> torch.dtype:
    """The dtype of the network's arithmetic."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


@contextmanager
def randomness(seed: int, purpose: str, count: int, device: torch.device) -> Iterator[None]:
    """torch's generators keyed by (seed, purpose, count) inside, and as they were afterwards on the CPU and CUDA."""
    digest = hashlib.blake2b(f"{seed}|{purpose}|{count}".encode(), digest_size=8).digest()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(digest, "little") >> 1)
        yield
