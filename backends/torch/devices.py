"""Which device a session or a predictor opens on, and whether this build of torch can use it. Never a silent CPU where
there is an NVIDIA GPU that torch cannot use."""

from __future__ import annotations

import os
import re
import shutil
import warnings

import psutil
import torch

from backends.contract import Hardware
from config.errors import BackendUnavailable
from config.launch import Launch

# Overrides the choice of device, such as "cpu" or "cuda:1".
DEVICE_VARIABLE = "TANDEM_TORCH_DEVICE"
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)")


def best_device() -> torch.device:
    """The device of TANDEM_TORCH_DEVICE, else CUDA (under a launcher the local rank's GPU), else MPS, else the CPU.

    A GPU that is chosen by its number becomes the current one, which pins memory and is asked how much is free.

    Raises `BackendUnavailable` when TANDEM_TORCH_DEVICE names a device that is not there, and for a GPU whose driver or
    architecture this torch does not support.
    """
    wanted = os.environ.get(DEVICE_VARIABLE)
    if wanted:
        return _current(named(wanted, DEVICE_VARIABLE + "="))
    if not _cuda_starts():
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    launch = Launch.of(os.environ)
    if not launch.launcher:
        return _supported(torch.device("cuda"))
    return _current(_supported(torch.device("cuda", launch.local_rank % torch.cuda.device_count())))


def hardware() -> Hardware:
    """The kind and the memory of the device that a session opens on; the CPU's is the machine's."""
    device = best_device()
    if device.type == "cuda":
        return Hardware("cuda", int(torch.cuda.get_device_properties(device).total_memory))
    if device.type == "mps":
        return Hardware("mps", int(torch.mps.recommended_max_memory()))
    return Hardware("cpu", psutil.virtual_memory().total)


def named(name: str, source: str) -> torch.device:
    """The device called `name`; `BackendUnavailable`, with where the name is from, when it is not there or cannot be
    used."""
    try:
        if name.startswith("cuda") and _cuda_starts():
            return _supported(torch.device(name))
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise BackendUnavailable(
            f"{source}{name}: torch {torch.__version__} has no such device here; leave it out, or use cpu"
        ) from error


def capability(device: torch.device) -> tuple[int, int]:
    """The CUDA compute capability of this very device, such as (8, 6)."""
    return torch.cuda.get_device_capability(device)


def remark(device: torch.device) -> str:
    """What a user should know about a session on the CPU: that this torch was built without CUDA and there is an NVIDIA
    GPU; else ""."""
    built = torch.version.cuda or torch.version.hip
    if device.type != "cpu" or built or os.environ.get(DEVICE_VARIABLE) or not shutil.which("nvidia-smi"):
        return ""
    return f"torch {torch.__version__} is built without CUDA, and there is an NVIDIA GPU: install torch with CUDA"


def _current(device: torch.device) -> torch.device:
    """The device, the current one if it is a GPU with a number."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def _cuda_starts() -> bool:
    """Whether CUDA can be used; `BackendUnavailable` where there is a GPU and it cannot, such as with an old driver."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
        count = torch.cuda.device_count() if torch.version.cuda else 0  # asks NVML, which works without CUDA
    reasons = [str(warning.message) for warning in caught if "CUDA initialization" in str(warning.message)]
    if there or not (count or reasons):
        return there
    reason = reasons[0] if reasons else "CUDA does not start"
    reason = " ".join(reason.partition("CUDA initialization: ")[2].split())[:200] or reason
    raise BackendUnavailable(
        f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use this machine's NVIDIA GPU: {reason} "
        f"Update the driver, install a torch for its CUDA version, or set {DEVICE_VARIABLE}=cpu"
    )


def _supported(device: torch.device) -> torch.device:
    """The device; `BackendUnavailable` where torch has no kernels for its architecture."""
    built, (major, minor) = torch.cuda.get_arch_list(), capability(device)
    if torch.version.hip or not built or any(_runs(architecture, (major, minor)) for architecture in built):
        return device
    raise BackendUnavailable(
        f"{device} is a {torch.cuda.get_device_name(device)} of compute capability {major}.{minor}, for which torch "
        f"{torch.__version__} has no kernels (it has {', '.join(built)}); install a torch release that still supports "
        f"the card, or set {DEVICE_VARIABLE}=cpu"
    )


def _runs(architecture: str, device: tuple[int, int]) -> bool:
    """Whether code for an architecture runs on a device's capability: binaries within the major version, PTX from its
    own on."""
    match = _ARCHITECTURE.match(architecture)
    if not match:
        return False
    built = int(match[2]), int(match[3])
    return built <= device and (match[1] == "compute" or built[0] == device[0])
