"""NVIDIA's providers of ONNX Runtime: their options, the libraries they need, and whether a session really has them.

ONNX Runtime lists each provider that its wheel was built with, and falls back to the CPU silently where the provider's
libraries do not load. Not run on a GPU.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config.errors import BackendUnavailable, TandemWarning
from config.places import cache_folder

TENSORRT, CUDA = "TensorrtExecutionProvider", "CUDAExecutionProvider"
NVIDIA = (TENSORRT, CUDA)
# TensorRT builds an engine for a range of batches, which takes minutes; larger batches are split.
TENSORRT_BATCH = 64
_REMEDY = (
    "it needs onnxruntime-gpu in place of onnxruntime, with the CUDA and cuDNN that it was built for: "
    'pip uninstall onnxruntime, then pip install -e ".[onnx_gpu]"'
)


def device_number() -> int:
    """The GPU: under torchrun that of LOCAL_RANK, else the first."""
    rank = os.environ.get("LOCAL_RANK", "")
    return int(rank) if rank.isdecimal() else 0


def preload(chosen: Sequence[str]) -> None:
    """Load the CUDA libraries of torch or of NVIDIA's wheels, which are on no library path."""
    import onnxruntime

    if any(provider in NVIDIA for provider in chosen):
        onnxruntime.preload_dlls()


def with_options(chosen: Sequence[str], path: Path) -> list[str | tuple[str, dict[str, Any]]]:
    """The providers with the device; TensorRT with its engines cached between starts and built once for all batches."""
    return [(name, _options(name, path)) if name in NVIDIA else name for name in chosen]


def _options(name: str, path: Path) -> dict[str, Any]:
    device: dict[str, Any] = {"device_id": device_number()}
    if name == CUDA:  # an fp32 file is computed in fp32, as it is verified; its own default is TF32
        return device | {"use_tf32": 0}
    engines = cache_folder() / "tensorrt"
    engines.mkdir(parents=True, exist_ok=True)
    cached = {"trt_engine_cache_enable": True, "trt_timing_cache_enable": True, "trt_engine_cache_path": str(engines)}
    ranges = {"min": 1, "opt": TENSORRT_BATCH, "max": TENSORRT_BATCH}
    shapes = _shapes(path)
    profiles = {
        f"trt_profile_{kind}_shapes": ",".join(
            f"{image}:{'x'.join(map(str, (batch, *sides)))}" for image, sides in shapes.items()
        )
        for kind, batch in ranges.items()
    }
    return device | cached | profiles


def _shapes(path: Path) -> dict[str, list[int]]:
    """The file's inputs and their shapes without the batch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    inputs = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).get_inputs()
    return {each.name: each.shape[1:] for each in inputs}


def check(asked: Sequence[str], present: Sequence[str], explicit: bool, path: Path) -> None:
    """Compare the requested providers with those of the session.

    `BackendUnavailable` where the user named one that did not load, a warning where it was the automatic choice.
    """
    absent = [provider for provider in asked if provider not in present]
    what = f"{path}: ONNX Runtime lists {', '.join(absent)}, which does not load here"
    if absent and explicit:
        raise BackendUnavailable(f"{what}{remedy(absent)}")
    if absent:
        warnings.warn(f"{what}: it runs on {present[0]}{remedy(absent)}", TandemWarning, stacklevel=2)


def remedy(absent: Sequence[str]) -> str:
    """The end of a message: what to install where one of NVIDIA's providers is absent."""
    return f"; {_REMEDY}" if any(provider in NVIDIA for provider in absent) else ""
