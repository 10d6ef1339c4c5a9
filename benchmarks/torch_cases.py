"""What `benchmarks.torch_step` measures on: its networks, the clock, and what a device can do at most."""

from __future__ import annotations

import time
from typing import NamedTuple

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from backends.contract import CompileMode
from backends.torch import model as networks
from config import load
from config.schema import Settings
from models.registry import ModelSpec

# (model, pixels, batch)
SMALL = (("resnet18", 64, 16), ("convnext_atto", 64, 16), ("vit_tiny_patch16_224", 64, 16))
LARGE = (
    ("convnext_base", 224, 128),
    ("vit_base_patch16_224", 224, 128),
    ("swin_base_patch4_window7_224", 224, 128),
    ("tf_efficientnetv2_b3", 288, 128),
)
CLASSES = 10
# Dense bf16 TFLOP/s by the maker's data sheets; the first name that is in the device's counts.
PEAKS = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200": 989,
    "B200": 2250,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10G": 70,
    "A10": 125,
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

    @property
    def settings(self) -> Settings:
        """Our side's settings."""
        words = f"--data.root synthetic --model {self.name} --data.image_size {self.size} --train.epochs 1"
        words += f" --train.batch_size {self.batch} --optim.lr 1e-4 --schedule.warmup_epochs 0"
        words += f" --checkpoint.every_minutes 0 --data.workers {self.workers} --augment.level none"
        words += f" --augment.min_scale {LEAST} --augment.brightness true --augment.contrast true"
        return load.parse([*words.split(), "--augment.saturation", "true"], prog="benchmark")


def forward_operations(spec: ModelSpec) -> int:
    """Floating-point operations of one image's forward pass (a multiply and an add are two); backward is twice that."""
    with torch.device("meta"):
        network = networks.build(spec).eval()
    side = spec.preprocessing.size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, side, side, device="meta"))
    return int(counter.get_total_flops())


def peak_of(device: torch.device) -> float:
    """TFLOP/s that the device can do at most in bf16, 0 where the table does not know it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((float(peak) for part, peak in PEAKS.items() if part in name), 0.0)
