"""A checkpoint in MLX, for inference only: a session of the MLX engine on the requested device."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from backends.contract import Precision, SessionConfig, Weights
from backends.mlx import session
from config.errors import BackendUnavailable
from infer.runtimes import images as pixels
from models.card import Card
from models.registry import ModelSpec

SUFFIX = ""
OPTIONS = ("device", "precision", "compile")


class MLXPredictor:
    """A session on a device; see `infer.runtimes.Predictor`. It belongs to the thread that opened it."""

    runtime = "mlx"

    def __init__(self, card: Card, opened: session.Session, device: mx.Device):
        self.card, self.device = card, device
        self._session = opened

    def logits(self, *images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 `[N, C]` of uint8 `[N, S, S, 3]`."""
        (pixels_in,) = pixels.checked(images, self.card)
        with mx.stream(self.device):
            return self._session.logits(pixels_in)

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 `[N, D]` of uint8 `[N, S, S, 3]`: pooled features; see `infer.runtimes.GivesFeatures`."""
        (pixels_in,) = pixels.checked((images,), self.card)
        with mx.stream(self.device):
            return self._session.features(pixels_in)

    def close(self) -> None:
        """Free the session."""
        self._session.close()


def open(
    card: Card,
    spec: ModelSpec,
    weights: Weights,
    device: str | None = None,
    precision: Precision = "fp32",
    compile: bool | None = None,
) -> MLXPredictor:
    """The network of `spec` with `weights` on `device` (`cpu` or `gpu`; None is the best one); `compile` None is True
    on Metal only, since MLX's CPU compiles each shape for many seconds.

    Raises `BackendUnavailable` for a device that is not there, `WeightsError` for weights that do not fit.
    """
    if device not in (None, "cpu", "gpu") or (device == "gpu" and mx.default_device().type != mx.DeviceType.gpu):
        raise BackendUnavailable(f"--device {device}: MLX has no such device here; use cpu, or leave it out")
    device_chosen = mx.default_device() if device is None else mx.Device(getattr(mx.DeviceType, device))
    fast = mx.metal.is_available() and device_chosen.type == mx.DeviceType.gpu if compile is None else compile
    with mx.stream(device_chosen):
        opened = session.open(spec, weights, SessionConfig(precision=precision, compile=fast))
    return MLXPredictor(card, opened, device_chosen)
