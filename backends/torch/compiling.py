"""torch.compile of a network's passes: in which form, and where it can be had. When it pays is the loop's decision.

Training is compiled in the mode that the settings name, evaluation always in the default one: it runs seldom.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.utils._triton import has_triton

from backends.contract import CompileMode, MemorySpec
from config.errors import BackendUnavailable, ConfigError
from models.registry import ModelSpec

Forward = Callable[[Tensor], Tensor]

# Dynamo keeps at most so many compiled versions of a class's `forward` in a process (8 by default), and runs further
# ones eagerly with a warning: every image size, batch, frozen backbone and evaluation is a version.
_VERSIONS = 256
_GRAPHS = ("reduce-overhead", "max-autotune")  # the modes with CUDA graphs

# What each mode is where a batch passes in parts: CUDA graphs keep the gradients of the part before in memory that the
# next part's replay writes over.
_WITHOUT_GRAPHS: dict[CompileMode, str] = {
    "default": "default",
    "reduce-overhead": "default",
    "max-autotune": "max-autotune-no-cudagraphs",
}


def mode(requested: bool | CompileMode, device: torch.device, memory: MemorySpec) -> str:
    """torch's name of the mode to compile with, "" for none; `True` is the default mode on CUDA, and none elsewhere.

    Where a mode is named and cannot be had, raises `ConfigError` for the kind of device, and `BackendUnavailable` where
    what the compiler needs is not installed.
    """
    if requested is False or (requested is True and device.type != "cuda"):
        return ""
    if device.type not in ("cuda", "cpu"):
        raise ConfigError(
            f"train.compile on: the torch engine does not compile on {device.type}, where it is slower than without; "
            "set it to off"
        )
    reason = refusal(device)
    if reason and requested is True:
        return ""
    if reason:
        raise BackendUnavailable(f"train.compile: {reason}; or set it to off")
    named: CompileMode = "default" if requested is True else requested
    return _WITHOUT_GRAPHS[named] if memory.micro_batch or device.type != "cuda" else named


def refusal(device: torch.device) -> str:
    """Why nothing can be compiled for the device, and what to install; "" where it can. On CUDA a small kernel is tried
    once a process."""
    if device.type == "cuda":
        return _tried(device)
    named = os.environ.get("CXX")
    candidates = [named] if named else ["cl"] if sys.platform == "win32" else ["g++", "clang++"]
    if not any(shutil.which(name) for name in candidates):
        return f"torch.compile needs a C++ compiler, and there is no {' or '.join(candidates)}: install one"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "torch.compile needs Python's headers, and there is no Python.h: install python3-dev or python3-devel"
    return ""


@functools.cache
def _tried(device: torch.device) -> str:
    """Triton builds a launcher with the C compiler and Python.h the first time, which a slim image or Windows lacks."""
    if not has_triton():
        return (
            "torch.compile needs Triton and a GPU of compute capability 7.0 or later, and they are not there: pip "
            f"install triton{'-windows' if sys.platform == 'win32' else ''}"
        )
    ones = torch.ones(16, device=device)
    try:
        works = bool((torch.compile(lambda x: x * 2, dynamic=False)(ones) == 2).all())
    except Exception as error:  # whatever the compiler, Triton or the loader of its library raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = next((line for line in lines if "compiler" in line or "Python.h" in line), [*lines, repr(error)][0])
        return (
            f"torch.compile cannot build a kernel here ({cause[:160]}): install a C compiler and Python's headers (gcc "
            "and python3-dev)"
        )
    return "" if works else "torch.compile builds a kernel here that gives wrong numbers: update the driver and torch"


_last_spec: list[ModelSpec] = []


def renew(spec: ModelSpec) -> None:
    """Forget what was compiled for another network; what was compiled for `spec` serves its next session too."""
    if _last_spec and _last_spec[0] != spec:
        torch.compiler.reset()
    _last_spec[:] = [spec]


def release(mode: str) -> None:
    """Free the memory of CUDA graphs, which outlives the session that recorded them."""
    if mode in _GRAPHS:
        torch.compiler.reset()


def _compiled(network: nn.Module, mode: str | None = None) -> Forward:
    # A version over the limit is an error, no silent eager run.
    torch._dynamo.config.recompile_limit = max(_VERSIONS, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.accumulated_recompile_limit = max(
        4 * _VERSIONS, torch._dynamo.config.accumulated_recompile_limit
    )
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    compiled: Forward = torch.compile(network, dynamic=False, mode=mode)
    return compiled


def training(network: nn.Module, mode: str) -> Forward:
    """The forward pass of training; its shapes are fixed, so that each is compiled once."""
    if not mode:
        return network
    compiled = _compiled(network, mode)
    if mode not in _GRAPHS:
        return compiled

    def replayed(pixels: Tensor) -> Tensor:
        # A new update: what the graphs of the last one left, its gradients too, may be written over.
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(pixels)

    return replayed


def evaluation(network: nn.Module, mode: str) -> Forward:
    """The forward pass of evaluation, without CUDA graphs: several of its results are kept at a time."""
    return _compiled(network) if mode else network
