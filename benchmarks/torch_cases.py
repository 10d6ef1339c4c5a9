"""What `benchmarks.torch_step` and `benchmarks.gpu` measure on: networks, the clock, and the peaks of GPUs."""

from __future__ import annotations

import re
import time
from typing import NamedTuple

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from backends.contract import CompileMode
from backends.torch import model as networks
from models.registry import ModelSpec

# (model, pixels, batch)
SMALL = (("resnet18", 64, 16), ("convnext_atto", 64, 16), ("vit_tiny_patch16_224", 64, 16))
LARGE = (
    ("resnet50", 224, 128),
    ("vit_base_patch16_224", 224, 128),
    ("convnext_base", 224, 128),
    ("tf_efficientnetv2_s", 300, 128),
    ("tf_efficientnet_b4", 380, 64),
)
CLASSES = 10
# Dense bf16 TFLOP/s, accumulated in fp32, by NVIDIA's data sheets, with the whole name that the driver gives. Cards of
# nearly the same name (Ti, D, Laptop, MIG slices) do other rates and are left out.
PEAKS = {
    r"NVIDIA GeForce RTX 3090": 71,
    r"NVIDIA GeForce RTX 4090": 165.2,
    r"NVIDIA GeForce RTX 5090": 209.5,
    r"NVIDIA A10": 125,
    r"NVIDIA A10G": 70,
    r"NVIDIA A100[- ].*": 312,
    r"NVIDIA L4": 121,
    r"NVIDIA L40S": 362,
    r"NVIDIA H100 PCIe": 756,
    r"NVIDIA H100 NVL": 835,
    r"NVIDIA H100 80GB HBM3": 989,
    r"NVIDIA H200": 989,
    r"NVIDIA H200 NVL": 835,
    r"NVIDIA B200": 2250,
}
JITTER, LEAST = 0.4, 0.08  # timm's defaults


class Case(NamedTuple):
    """A network with its data and what both sides are to do with it."""

    name: str
    size: int
    batch: int
    updates: int
    workers: int
    compile: bool | CompileMode
    device: torch.device

    def clock(self) -> float:
        """Seconds, once the device is done; on the CPU those of this process and its workers, as others may be busy."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        # psutil counts in hundredths of a second, too coarse for an update of this process.
        workers = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
        return time.process_time() + sum(times.user + times.system for times in workers)


def forward_operations(spec: ModelSpec) -> int:
    """Floating-point operations of one image's forward pass (a multiply and an add are two); backward is twice that."""
    with torch.device("meta"):
        network = networks.build(spec).eval()
    side = spec.preprocessing.size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, side, side, device="meta"))
    return int(counter.get_total_flops())


def peak_of(device: torch.device) -> float | None:
    """TFLOP/s that the device can do at most in bf16, None where the table does not know it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if " MIG " in name:
        return None
    return next((float(peak) for pattern, peak in PEAKS.items() if re.fullmatch(pattern, name)), None)
