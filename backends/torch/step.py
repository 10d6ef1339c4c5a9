"""One training update and one evaluation, as functions of device tensors. Nothing here waits for the device.

Rates, plans and seeds are decided elsewhere and arrive as arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from backends.contract import Precision
from backends.torch import optim
from backends.torch.losses import PerSample, weighted_mean

Forward = Callable[[Tensor], Tensor]


class Trainer(NamedTuple):
    """What one update works on. `forward` is the model, or its compiled form; `count` (int64, 0-d) counts updates."""

    model: nn.Module
    forward: Forward
    loss: PerSample
    optimizer: torch.optim.Optimizer
    statistics: optim.Statistics
    average: optim.Average | None
    count: Tensor


class Input(NamedTuple):
    """How uint8 pixels become the model's input: mean and std of [0, 1] values, `[3]` on the device."""

    mean: Tensor
    std: Tensor
    channels: int
    precision: Precision

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 `[N, H, W, 3]` to float32 `[N, C, H, W]`; one channel is the mean of the normalised three."""
        scaled = ((images.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)
        return scaled if self.channels == 3 else scaled.mean(1, keepdim=True)


class Rates(NamedTuple):
    """`contract.Knobs` as the floats that a float32 holds, the same numbers that other engines see."""

    lr: float
    weight_decay: float
    ema_decay: float
    clip_norm: float


def update(trainer: Trainer, prepare: Input, batch: list[Tensor], plan: list[Tensor] | None, rates: Rates) -> Tensor:
    """Apply one update; float32 `[N + 2]` on the device: per-sample losses, gradient norm, 1.0 if all was finite.

    An update that is not finite changes nothing: weights, moments, running statistics, average and count stay.
    """
    images, targets, weights = batch
    kept = trainer.statistics.kept()
    trainer.optimizer.zero_grad(set_to_none=True)
    pixels = prepare(images)
    if plan is not None:
        pixels, targets = mixed(pixels, targets, plan)
    with precision_of(prepare.precision, images.device):
        logits = trainer.forward(pixels)
    losses = trainer.loss(logits, targets)
    mean = weighted_mean(losses, weights)
    mean.backward()

    parameters = [p for p in trainer.model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    finite = mean.detach().isfinite() & norm.isfinite()
    optim.clip_(parameters, norm, rates.clip_norm)
    optim.update(trainer.optimizer, rates.lr, rates.weight_decay, finite)
    trainer.statistics.restore(kept, finite)
    if trainer.average is not None:
        trainer.average.update(rates.ema_decay, finite)
    trainer.count.add_(finite)
    return torch.cat([losses.detach(), norm[None], finite[None].float()])


def mixed(pixels: Tensor, targets: Tensor, plan: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mixup and CutMix of `contract.MixPlan`: pixels `[N, C, H, W]`, targets `[N, classes]`."""
    permutation, blend, box, own = plan
    other, share, own = pixels[permutation], blend[:, None, None, None], own[:, None]
    top, bottom, left, right = (box[:, i, None] for i in range(4))
    rows = torch.arange(pixels.shape[2], device=pixels.device)
    columns = torch.arange(pixels.shape[3], device=pixels.device)
    inside = ((rows >= top) & (rows < bottom))[:, None, :, None] & ((columns >= left) & (columns < right))[
        :, None, None
    ]
    pixels = torch.where(inside, other, share * pixels + (1 - share) * other)
    return pixels, own * targets + (1 - own) * targets[permutation]


@torch.no_grad()
def evaluate(forward: Forward, prepare: Input, images: Tensor) -> Tensor:
    """float32 `[N, C]` of uint8 `[N, H, W, 3]`; the model is in evaluation mode already."""
    with precision_of(prepare.precision, images.device):
        return forward(prepare(images)).float()


def precision_of(precision: Precision, device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 over float32 weights, or nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def randomness(seed: int, purpose: str, count: int, device: torch.device) -> Iterator[None]:
    """torch's generators keyed by (seed, purpose, count) inside, and as they were afterwards on the CPU and CUDA."""
    digest = hashlib.blake2b(f"{seed}|{purpose}|{count}".encode(), digest_size=8).digest()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(digest, "little") >> 1)
        yield
