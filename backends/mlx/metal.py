"""What MLX is told before Metal's first kernel: exact float32, no Winograd in half precision, how much memory is ours.

Read in MLX 0.32.2's source (`mlx/utils.h`, `mlx/backend/metal/conv.cpp`) and in the 0.32.4 macOS library. A CPU ignores
the two variables.
"""

from __future__ import annotations

import os

import mlx.core as mx
import psutil

from backends.contract import Hardware, Precision
from config.errors import ConfigError

TF32 = "MLX_ENABLE_TF32"  # read once in a process, at its first product; 1 unless it is set
# Both are read at each dispatch; the second is how versions before 0.32.4 are told.
WINOGRAD = {"MLX_CONV_WINOGRAD": "0", "MLX_CONV_WINOGRAD_WORKING_SET": "1"}
_KEPT_BETWEEN_STEPS = 3 / 4  # of the memory that Metal recommends, for buffers that the next step takes again
_told: list[str] = []  # the value of TF32 that this process has set


def on_gpu() -> bool:
    """Whether MLX computes on Metal or CUDA."""
    return bool(mx.default_device().type == mx.gpu)


def active() -> bool:
    """Whether MLX computes on Metal here and now; with `--device cpu` a Mac does not."""
    return bool(mx.metal.is_available()) and on_gpu()


def set_arithmetic(precision: Precision) -> None:
    """Set MLX's variables for a network in `precision`, before anything is computed.

    On an M5 with macOS 26.2 float32 products are TF32 unless `MLX_ENABLE_TF32` is 0. Winograd's F(6, 3) keeps its
    transforms in the dtype of the layer, which loses 4.8% (rms, modelled) of a bf16 layer. A value that the user gave
    stays. Raises `ConfigError` for tf32 without Metal, and for fp32 in a process whose products are TF32 already.
    """
    if precision == "tf32" and not active():
        raise ConfigError("train.precision tf32: MLX has it on Metal alone (M5, macOS 26.2); choose fp32")
    if precision == "fp32" and _told == ["1"]:
        raise ConfigError("train.precision fp32: this process computes in tf32 already; start another one for it")
    if TF32 not in os.environ:
        _told[:] = ["1" if precision == "tf32" else "0"]
        os.environ[TF32] = _told[0]
    if precision in ("bf16", "fp16"):
        for name, value in WINOGRAD.items():
            os.environ.setdefault(name, value)


def memory_limit() -> int | None:
    """The bytes that Metal recommends to use at most; None off Metal, whose allocator alone goes on into swap."""
    return int(mx.device_info(mx.Device(mx.gpu))["max_recommended_working_set_size"]) if active() else None


def hardware() -> Hardware:
    """The kind of the device that a session opens on and the memory that it should use at most."""
    limit = memory_limit()
    return Hardware("metal", limit) if limit else Hardware("cpu", psutil.virtual_memory().total)


def claim_memory() -> None:
    """Keep weights resident between steps, and most of what a backward pass gives back for the next one."""
    most = memory_limit()
    if most is not None:
        mx.set_wired_limit(most)
        mx.set_cache_limit(int(most * _KEPT_BETWEEN_STEPS))
    mx.reset_peak_memory()
