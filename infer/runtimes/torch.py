"""A checkpoint in torch, for inference only: no optimizer, any device, compiled or channels-last where asked.

The network and its arithmetic are those of the torch engine's sessions (`backends.torch`), so that both predict alike.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from backends.contract import Precision, Weights
from backends.torch import compiling, model, step
from backends.torch.devices import best_device, named
from backends.torch.memory import memory_errors
from backends.torch.precision import allow_tf32, of_inference
from config.errors import BackendUnavailable, ConfigError, OutOfMemory, TandemWarning
from infer.runtimes import images as pixels
from models.card import Card
from models.registry import ModelSpec

SUFFIX = ""
OPTIONS = ("device", "precision", "compile", "channels_last")

# Pixels of one forward pass: 64 images at 224. Larger ones are not faster on the CPU and need more memory.
_CHUNK_PIXELS = 64 * 224 * 224


class _Pooled(nn.Module):
    """timm's model without its classifier."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, C, H, W]` to `[N, D]`."""
        return self.network.forward_head(self.network.forward_features(x), pre_logits=True)


class TorchPredictor:
    """A network on a device; see `infer.runtimes.Predictor`."""

    runtime = "torch"

    def __init__(self, card: Card, network: nn.Module, prepare: step.Input, device: torch.device, compile: bool):
        self.card, self.device = card, device
        self._network: nn.Module | None = network
        self._prepare, self._compiled = prepare, compile
        self._forward: compiling.Forward = compiling.evaluation(network, "default" if compile else "")
        self._width = int(network.head_hidden_size)
        self._pooled: compiling.Forward = compiling.evaluation(_Pooled(network), "default" if compile else "")
        self._chunk = max(1, _CHUNK_PIXELS // card.preprocessing.size**2)

    def logits(self, *images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 `[N, C]` of uint8 `[N, S, S, 3]`. When the device's memory is too small, fewer images pass at a time.

        `OutOfMemory` when even one image does not fit.
        """
        (array,) = pixels.checked(images, self.card)
        return self._in_chunks(self._forward, array, len(self.card.class_names))

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 `[N, D]` of uint8 `[N, S, S, 3]`: pooled features; see `infer.runtimes.GivesFeatures`."""
        (array,) = pixels.checked((images,), self.card)
        return self._in_chunks(self._pooled, array, self._width)

    def close(self) -> None:
        """Free the device's memory; the predictor cannot be used afterwards."""
        self._network = None
        del self._forward, self._pooled
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def describe(self) -> str:
        """The device, the precision and whether it is compiled, as one line."""
        return f"torch on {self.device}, {self._prepare.precision}{', compiled' * self._compiled}"

    def _in_chunks(self, forward: compiling.Forward, images: NDArray[np.uint8], width: int) -> NDArray[np.float32]:
        rows, start = [np.zeros((0, width), np.float32)], 0
        while start < len(images):
            chunk = images[start : start + self._chunk]
            try:
                rows.append(self._run(forward, chunk))
            except OutOfMemory as error:
                self._shrink(len(chunk), error)
                continue
            start += len(chunk)
        return np.concatenate(rows)

    @memory_errors()
    def _run(self, forward: compiling.Forward, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        count = len(images)
        if self._compiled:  # few shapes: every new one is compiled
            padded = min(self._chunk, 1 << (count - 1).bit_length())
            images = np.concatenate([images, np.zeros((padded - count, *images.shape[1:]), np.uint8)])
        allow_tf32(self._prepare.precision, self.device)  # another member may have been opened with another one
        tensor = torch.from_numpy(np.require(images, requirements=("C", "W")))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        with torch.inference_mode():
            tensor = tensor.to(self.device, non_blocking=self.device.type == "cuda")
            return np.array(step.evaluate(forward, self._prepare, tensor).cpu().numpy()[:count])

    def _shrink(self, tried: int, error: OutOfMemory) -> None:
        if tried == 1:
            raise OutOfMemory(
                f"{self.card.model}: one image does not fit into the memory of {self.device}; choose another device"
            ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._chunk = tried // 2
        warnings.warn(
            f"{self.card.model}: out of memory on {self.device}; goes on with {self._chunk} images a pass",
            TandemWarning,
            stacklevel=2,
        )


@memory_errors()
def open(
    card: Card,
    spec: ModelSpec,
    weights: Weights,
    device: str | None = None,
    precision: Precision | None = None,
    compile: bool = False,
    channels_last: bool | None = None,
) -> TorchPredictor:
    """The network of `spec` with `weights`; `device` None is CUDA (under torchrun the rank's GPU), else MPS, else the
    CPU; `channels_last` None is True on CUDA, `precision` None is tf32 where CUDA has it, else fp32.

    Raises `BackendUnavailable` for a device that is not there or no compiler, `ConfigError` for a precision that the
    device lacks, `WeightsError` for weights that do not fit.
    """
    chosen = best_device() if device is None else named(device, "--device ")
    refusal = compiling.refusal(chosen) if compile else ""
    if refusal:
        raise BackendUnavailable(f"--compile: {refusal}; or leave --compile out")
    if spec.in_chans not in (1, 3):
        raise ConfigError(f"model {spec.name}: in_chans is {spec.in_chans}; images are RGB, so choose 1 or 3")
    exact = of_inference(precision, chosen)
    network = model.build(spec)
    model.load_canonical(network, weights, f"the weights for {spec.name}")
    last = chosen.type == "cuda" if channels_last is None else channels_last
    network = network.to(chosen, memory_format=torch.channels_last if last else torch.contiguous_format).eval()
    mean, std = (torch.tensor(v, device=chosen) for v in (spec.preprocessing.mean, spec.preprocessing.std))
    return TorchPredictor(card, network, step.Input(mean, std, spec.in_chans, exact), chosen, compile)
