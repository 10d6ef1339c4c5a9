"""The arms of `benchmarks step` with torch: our step and loop, and the loop of timm's train.py.

`Case`, `Timm` and the count of operations serve `benchmarks gpu` too.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import NativeScaler, dispatch_clip_grad
from torch.utils.flop_counter import FlopCounterMode

from backends.contract import CompileMode, SessionConfig
from backends.torch import model as networks
from backends.torch import session
from backends.torch import step as engine
from backends.torch.precision import autocast, resolved
from benchmarks import common, loader
from benchmarks.common import Peer, photographs
from benchmarks.steps import step
from benchmarks.steps.step import CLASSES
from data.cache.images import Images, Source
from data.cores import cores
from data.loading.loader import Loader
from models import registry
from models.card import Preprocessing
from models.registry import ModelSpec

SMALL = {"resnet18": (64, 16), "convnext_atto": (64, 16), "vit_tiny_patch16_224": (64, 16)}  # pixels, batch


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


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Seconds of an update and what belongs to them, for each network, on the CPU."""
    rows = {}
    paths = photographs(arguments.data, arguments.images, folder / "images" / "class") if arguments.data else []
    for name in arguments.models or SMALL:
        size, batch = SMALL.get(name, (224, 32))
        size, batch, updates = arguments.size or size, arguments.batch or batch, arguments.updates or 6
        case = Case(name, size, batch, updates, cores(), False, torch.device("cpu"))
        rows[name] = measured(case, paths, arguments.repeats)
    return rows


def measured(case: Case, paths: list[Path], repeats: int) -> dict[str, Any]:
    """The arms of one network in turn."""
    spec = registry.get(case.name, num_classes=CLASSES, image_size=case.size)
    opened = opened_on(case, spec)
    synthetic = step.Repeated(step.pixels(case.batch, case.size))

    def loop(train: Any, updates: int) -> Callable[[], float]:
        return lambda: step.loop_seconds(opened, spec, train, updates, case.clock)

    with Peer(Timm, case, paths) as timm:
        arms = {
            "bare": lambda: bare(opened, case, case.updates),
            "loop": loop(synthetic, case.updates),
            "timm": lambda: case.batch / timm("on_synthetic", case.updates),
        }
        if paths:
            prep, updates = spec.preprocessing, min(case.updates, len(paths) // case.batch)
            arms["loop_files"] = loop(loader_of(case, prep, paths, Images(0)), updates)
            cached = loader.cache(paths, case.size, paths[0].parents[1], f"cache_{case.size}", 1000.0)
            arms["loop_cached"] = loop(loader_of(case, prep, paths, cached), updates)
            arms["timm_files"] = lambda: case.batch / timm("on_files")

        def warm() -> None:
            """An update of each side, as the first one after another arm pays for memory that the other gave back."""
            bare(opened, case, 1)
            timm("on_synthetic", 1)

        seconds = common.in_turn(arms, repeats, warm)
    opened.close()
    operations = 3 * forward_operations(spec) * case.batch
    return {"size": case.size, "batch": case.batch, "seconds": seconds, "operations": operations}


def opened_on(case: Case, spec: ModelSpec, deterministic: bool = False) -> session.Session:
    """A session on the case's device."""
    os.environ[session.DEVICE_VARIABLE] = str(case.device)
    config = SessionConfig(precision="auto", compile=case.compile, deterministic=deterministic)
    return session.open(spec, None, config)


def bare(opened: session.Session, case: Case, updates: int) -> float:
    """Seconds of the update alone, its inputs on the device, enqueued one after another, nothing read."""
    batch = [torch.from_numpy(array).to(case.device) for array in step.batch_of(step.pixels(case.batch, case.size))]
    engine.set_mode(opened._context, False)
    opened._set = None  # the session is to set the mode again
    rates = engine.Rates(1e-4, 0.05, 0.0, 1.0)
    start = case.clock()
    for _ in range(updates):
        engine.train_step(opened._context, opened._input, batch, None, rates, False)
    return (case.clock() - start) / updates


def loader_of(case: Case, prep: Preprocessing, paths: list[Path], source: Source, processes: int = 0) -> Loader:
    """Our loader with the changes of timm's defaults."""
    change = loader.transform(replace(prep, size=case.size))
    return Loader(paths, change, case.size, case.batch, case.workers, images=source, processes=processes)


def forward_operations(spec: ModelSpec) -> int:
    """Floating-point operations of one image's forward pass (a multiply and an add are two); backward is twice that."""
    with torch.device("meta"):
        network = networks.build(spec).eval()
    side = spec.preprocessing.size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, side, side, device="meta"))
    return int(counter.get_total_flops())


class Timm:
    """timm's train.py, which its wheel lacks, as its public functions make it, with the flags that are best for it on
    the device: channels last, its fused AdamW, its prefetcher, and on CUDA the precision of `train.precision auto` and
    torch.compile."""

    def __init__(self, case: Case, paths: list[Path]):
        self.case, device = case, case.device
        fixed = {"img_size": case.size} if "vit" in case.name or "swin" in case.name else {}
        model = timm.create_model(case.name, num_classes=CLASSES, **fixed).to(device)
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        model = model.to(memory_format=torch.channels_last)
        self.optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05, fused=True)
        self.model = torch.compile(model, mode=case.compile) if isinstance(case.compile, str) else model
        self.loss = LabelSmoothingCrossEntropy(0.1).to(device)
        self.precision = resolved("auto", device)
        self.scaler = NativeScaler() if self.precision == "fp16" else None
        sizes = {"input_size": (3, case.size, case.size), "batch_size": case.batch}
        on = {"device": device, "pin_memory": device.type == "cuda"}
        self.loader: Any = loader.timms(paths[0].parents[1], case.workers, **sizes, **on) if paths else None

    def on_synthetic(self, updates: int) -> float:
        """Images a second with the same batch for every update, normalised and on the device."""
        case = self.case
        images = torch.randn(case.batch, 3, case.size, case.size, device=case.device)
        return self._rate([(images, torch.arange(case.batch, device=case.device) % CLASSES)] * updates)

    def on_files(self) -> float:
        """Images a second of an epoch over the files."""
        return self._rate(self.loader)

    def _rate(self, loader: Any) -> float:
        """Images a second of an epoch of train.py's loop, not distributed, at most `updates` updates long."""
        count = 0
        self.model.train()
        start = self.case.clock()
        for images, target in itertools.islice(loader, self.case.updates):
            images = images.contiguous(memory_format=torch.channels_last)
            with autocast(self.precision, self.case.device):
                loss = self.loss(self.model(images), target)
            if self.scaler:
                self.scaler(loss, self.optimizer, clip_grad=1.0, clip_mode="norm", parameters=self.model.parameters())
            else:
                loss.backward()
                dispatch_clip_grad(self.model.parameters(), value=1.0, mode="norm")
                self.optimizer.step()
            self.optimizer.zero_grad()
            loss.item()  # for its average of the losses
            count += len(images)
        return count / (self.case.clock() - start)
