"""What each precision means on torch: autocast, the scale of an fp16 loss, and tf32. Nothing waits for the device."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from backends.contract import FIRST_LOSS_SCALE, Precision
from backends.torch.devices import capability
from config.errors import ConfigError

# torch.amp.GradScaler's: the change of the scale, and the finite updates before it grows.
_FACTOR, _PATIENCE = 2.0, 2000
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolved(precision: Precision, device: torch.device) -> Precision:
    """`auto` is what the device is fast at: bf16 on CUDA from compute capability 8 on, fp16 with a scaled loss on 7.x
    (V100, T4, RTX 20), else fp32. Says to torch whether CUDA's fp32 may be tf32, which fp32 never is here.

    Raises `ConfigError` for tf32 on a device that has none, and for bf16 on a GPU that cuDNN has none for.
    """
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"train.precision tf32: needs an NVIDIA GPU, and the device is {device}; choose fp32")
    allow_tf32(precision, device)
    if device.type == "cuda":
        major = 8 if torch.version.hip else capability(device)[0]
        if precision in ("bf16", "tf32") and major < 8:
            raise ConfigError(
                f"train.precision {precision}: needs a GPU of compute capability 8.0 or later, and {device} has "
                f"{major}.x; choose auto"
            )
        if precision == "auto":
            return "bf16" if major >= 8 else "fp16" if major == 7 else "fp32"
    return "fp32" if precision == "auto" else precision


def of_inference(precision: Precision | None, device: torch.device) -> Precision:
    """As `resolved`; None is tf32 where CUDA has it (from compute capability 8 on), else fp32."""
    if precision is None:
        has_it = device.type == "cuda" and not torch.version.hip and capability(device)[0] >= 8
        precision = "tf32" if has_it else "fp32"
    return resolved(precision, device)


def allow_tf32(precision: Precision, device: torch.device) -> None:
    """Set, for the whole process, whether CUDA's fp32 products are taken in tf32."""
    if device.type == "cuda":
        # The older switches: those named fp32_precision make torch.compile's own checks of these fail.
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"


def tf32(device: torch.device) -> bool:
    """Whether fp32 products are taken in tf32 there."""
    return device.type == "cuda" and torch.backends.cudnn.allow_tf32


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast over float32 weights, or nothing."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


class LossScale:
    """The factor of the loss that keeps fp16 gradients above the smallest numbers, as torch's `GradScaler` moves it:
    doubled after many finite updates, halved after one that is not, all on the device.

    `value` (float32, 0-d) is the factor, `age` (int64, 0-d) the finite updates since it changed.
    """

    def __init__(self, device: torch.device):
        self.value = torch.full((), FIRST_LOSS_SCALE, device=device)
        self.age = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def unscale_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the gradients by the factor."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, self.value.reciprocal())

    def curable(self) -> Tensor:
        """bool, 0-d: whether gradients that are not finite may be so because of the factor."""
        return self.value > 1

    @torch.no_grad()
    def update(self, finite: Tensor) -> None:
        """Follow an update of which `finite` (bool, 0-d) says whether it was."""
        grows = finite & (self.age + 1 >= _PATIENCE)
        factor = torch.where(finite, torch.where(grows, _FACTOR, 1.0), 1 / _FACTOR)
        self.value.mul_(factor)
        self.age.copy_(torch.where(finite & ~grows, self.age + 1, 0))
