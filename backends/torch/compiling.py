"""torch.compile of a network's passes: in which form, and where it can be had. When it pays is the loop's decision.

Training is compiled in the mode that the settings name, evaluation always in the default one: it runs seldom.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._triton import has_triton

from backends.contract import CompileMode, MemorySpec
from config.errors import ConfigError

Forward = Callable[[Tensor], Tensor]

# What each mode is where a batch passes in parts: CUDA graphs keep the gradients of the part before in memory that the
# next part's replay writes over.
_WITHOUT_GRAPHS: dict[CompileMode, str] = {
    "default": "default",
    "reduce-overhead": "default",
    "max-autotune": "max-autotune-no-cudagraphs",
}


def mode(wish: bool | CompileMode, device: torch.device, memory: MemorySpec) -> str:
    """torch's name of the mode to compile with, "" for none; `True` is the default mode on CUDA, and none elsewhere.

    Raises `ConfigError` where a mode is named and the device cannot have it.
    """
    if wish is False:
        return ""
    reason = refusal(device)
    if wish is True:
        return "default" if device.type == "cuda" and not reason else ""
    if reason:
        raise ConfigError(f"train.compile on: {reason}; set it to off")
    return _WITHOUT_GRAPHS[wish] if memory.micro_batch or device.type != "cuda" else wish


def refusal(device: torch.device) -> str:
    """Why nothing can be compiled for the device, "" where it can."""
    if device.type == "cuda":
        return "" if has_triton() else "torch.compile needs Triton for this GPU, and it is not there"
    if device.type == "cpu":
        named = os.environ.get("CXX")
        candidates = [named] if named else ["cl"] if sys.platform == "win32" else ["g++", "clang++"]
        found = any(shutil.which(name) for name in candidates)
        return "" if found else f"torch.compile needs a C++ compiler, and there is no {' or '.join(candidates)}"
    return f"the torch engine does not compile on {device.type}, where it is slower than without"


def training(network: nn.Module, mode: str) -> Forward:
    """The forward pass of training; its shapes are fixed, so that each is compiled once."""
    if not mode:
        return network
    compiled: Forward = torch.compile(network, dynamic=False, mode=mode)
    if mode not in ("reduce-overhead", "max-autotune"):
        return compiled

    def replayed(pixels: Tensor) -> Tensor:
        # A new update: what the graphs of the last one left, its gradients too, may be written over.
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(pixels)

    return replayed


def evaluation(network: nn.Module, mode: str) -> Forward:
    """The forward pass of evaluation, without CUDA graphs: several of its results are kept at a time."""
    forward: Forward = torch.compile(network, dynamic=False) if mode else network
    return forward
