"""The arms of `benchmarks.step` with torch: our step and loop, and the loop of timm's train.py."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from backends.contract import SessionConfig
from backends.torch import session, step
from benchmarks import step_loop
from benchmarks.common import Peer, photographs
from benchmarks.step import in_turn
from benchmarks.timm_train import Timm
from benchmarks.torch_cases import CLASSES, LEAST, SMALL, Case, forward_operations
from config.sections.augment import Augment
from config.sections.data import Data
from data.augment import transforms
from data.cache import disk
from data.cache.images import Images, Source
from data.loading.loader import Loader
from models import registry
from models.registry import ModelSpec

OPS = {"brightness": True, "contrast": True, "saturation": True}


def run(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Seconds of an update and what belongs to them, for each network."""
    os.environ[session.DEVICE_VARIABLE] = arguments.device
    known = {name: (size, batch) for name, size, batch in SMALL}
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        files = (
            photographs(arguments.data, arguments.images, Path(folder) / "images" / "class") if arguments.data else None
        )
        for name in arguments.models or known:
            size, batch = known.get(name, (224, 32))
            size, batch, updates = arguments.size or size, arguments.batch or batch, arguments.updates or 6
            device, compiled = torch.device(arguments.device), arguments.compile or False
            case = Case(name, size, batch, updates, arguments.workers, compiled, device)
            rows[name] = measured(case, sorted(files.iterdir()) if files else [], arguments.repeats)
    return rows


def measured(case: Case, paths: list[Path], repeats: int) -> dict[str, Any]:
    """The arms of one network in turn."""
    spec = registry.get(case.name, num_classes=CLASSES, image_size=case.size)
    opened = session.open(spec, None, SessionConfig(precision="auto", compile=case.compile))
    synthetic = step_loop.Repeated(step_loop.images(case.batch, case.size))

    def loop(train: Any, updates: int) -> Callable[[], float]:
        return lambda: step_loop.seconds(opened, spec, train, updates, case.clock)

    with Peer(Timm, case, paths) as timm:
        arms = {
            "bare": lambda: bare(opened, case, case.updates),
            "loop": loop(synthetic, case.updates),
            "timm": lambda: case.batch / timm("on_synthetic", case.updates),
        }
        if paths:
            updates = min(case.updates, len(paths) // case.batch)
            arms["loop_files"] = loop(_loader(case, spec, paths, Images(0)), updates)
            arms["loop_cached"] = loop(_loader(case, spec, paths, _cache(case, spec, paths)), updates)
            arms["timm_files"] = lambda: case.batch / timm("on_files")

        def warm() -> None:
            """An update of each side, as the first one after another arm pays for memory that the other gave back."""
            bare(opened, case, 1)
            timm("on_synthetic", 1)

        seconds = in_turn(case.name, arms, repeats, warm)
    opened.close()
    operations = 3 * forward_operations(spec) * case.batch
    return {"size": case.size, "batch": case.batch, "seconds": seconds, "operations": operations}


def bare(opened: session.Session, case: Case, updates: int) -> float:
    """Seconds of the update alone, its inputs on the device, enqueued one after another, nothing read."""
    inputs = step_loop.batch_of(step_loop.images(case.batch, case.size))
    batch = [torch.from_numpy(array).to(case.device) for array in inputs]
    step.set_mode(opened._context, False)
    opened._set = None  # the session is to set the mode again
    rates = step.Rates(1e-4, 0.05, 0.0, 1.0)
    start = case.clock()
    for _ in range(updates):
        step.train_step(opened._context, opened._input, batch, None, rates, False)
    return (case.clock() - start) / updates


def _loader(case: Case, spec: ModelSpec, paths: list[Path], source: Source) -> Loader:
    augment = Augment.model_validate({"level": "none", "min_scale": LEAST, "ops": OPS})
    transform = transforms.by_epoch(augment, replace(spec.preprocessing, size=case.size), 1)
    return Loader(paths, transform, case.size, case.batch, case.workers, 0, source)


def _cache(case: Case, spec: ModelSpec, paths: list[Path]) -> Source:
    """The cache of decoded images, beside the files."""
    folder = paths[0].parent.parent / f"cache_{case.size}"
    data, prep = Data(root=folder, cache_gb=1000.0, cache_dir=folder), replace(spec.preprocessing, size=case.size)
    with contextlib.redirect_stdout(sys.stderr):
        return disk.sources(data, prep, paths, Images(0), lambda: False).train
