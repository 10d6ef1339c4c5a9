"""What `benchmarks gpu` measures. An arm is a generator: each dict that it yields replaces the one before, so that what
was measured before the arm is stopped is kept. Every arm asserts that it computes on the device."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from backends.contract import Batch, Precision
from backends.torch import session, step
from backends.torch.precision import autocast, resolved
from backends.torch.transfer import Transfer
from benchmarks.common import fresh, rounded
from benchmarks.steps.step import CLASSES, batch_of, pixels, run_steps
from benchmarks.steps.step_torch import Case, Timm, forward_operations, loader_of, opened_on
from config.errors import BackendUnavailable, OutOfMemory
from data.cache.images import Images
from data.cores import cores
from models import registry

Figures = Iterator[dict[str, Any]]
LARGE = {  # pixels, batch, and what stands in for it in a dry run
    "resnet50": (224, 128, "test_resnet"),
    "vit_base_patch16_224": (224, 128, "test_vit"),
    "convnext_base": (224, 128, "test_convnext"),
    "tf_efficientnetv2_s": (300, 128, "test_efficientnet"),
    "tf_efficientnet_b4": (380, 64, "test_efficientnet"),
}
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
_TURNS, _TURN_S = 3, 2.0  # turns of each side, and the seconds of one
_HALVED = 8  # times
_DISTINCT, _FILES = 128, 16384


class Setting(NamedTuple):
    """What every arm is given. `updates` are those of a turn, 0 for about two seconds of them."""

    device: str
    updates: int
    workers: int
    folder: str
    halved: int = 0  # how often the batch was

    @property
    def tiny(self) -> bool:
        """On the CPU a dry run: small networks and images, and torch.compile without its compiler."""
        return not self.device.startswith("cuda")

    def case(self, name: str, compiled: bool = False) -> Case:
        """The network of the table, or its small stand-in."""
        size, batch, stand_in = LARGE[name]
        if self.tiny:
            name, size, batch = stand_in, 32, 4
        device, batch = torch.device(self.device), max(1, batch >> self.halved)
        return Case(name, size, batch, self.updates, self.workers, "default" if compiled else False, device)

    def of_files(self, name: str) -> Case:
        """The same at 224 pixels, with all cores."""
        workers, updates = self.workers or cores(), self.updates or 10**6
        return self.case(name)._replace(size=224, workers=workers, updates=updates)

    def of_a_turn(self, seconds: float) -> int:
        """The updates of a turn when one takes so long."""
        return self.updates or max(4, round(_TURN_S / seconds))


def run(setting: Setting, name: str, arguments: tuple[Any, ...]) -> Figures:
    """The figures of the arm called `name`; its batch is halved until it fits into the device's memory."""
    if setting.tiny:
        torch.compile = functools.partial(torch.compile, disable=True)
    arms = (machine, train, loader, fed, inference, deterministic)
    arm = {arm.__name__: arm for arm in arms}[name]
    for halved in range(_HALVED):
        try:
            yield from arm(setting._replace(halved=halved), *arguments)
            return
        except (OutOfMemory, torch.OutOfMemoryError):
            if halved == _HALVED - 1:
                raise
        gc.collect()
        torch.cuda.empty_cache()


def machine(setting: Setting) -> Figures:
    """The device, its driver and the versions."""
    device = torch.device(setting.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        session.best_device()  # names a driver that is too old, or a card without kernels
        raise BackendUnavailable(f"torch {torch.__version__} finds no CUDA device here")
    facts: dict[str, Any] = {"name": str(device), "cores": cores()}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts |= {"name": card.name, "memory_gib": _gib(card.total_memory), "capability": f"{card.major}.{card.minor}"}
        facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "peak_tflops": peak_of(device)}
    versions = {}
    for name in ("torch", "timm"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    yield facts | {"precision": resolved("auto", device), "versions": versions}


def peak_of(device: torch.device) -> float | None:
    """TFLOP/s that the device can do at most in bf16, None where the table does not know it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if " MIG " in name:
        return None
    return next((float(peak) for pattern, peak in PEAKS.items() if re.fullmatch(pattern, name)), None)


def train(setting: Setting, name: str, compiled: bool) -> Figures:
    """A training step from uint8 batches of the host, and timm's loop with a batch that is on the device, in turn."""
    case = setting.case(name, compiled)
    with Ours(case) as ours:
        first = ours.seconds(1)
        updates = setting.of_a_turn(min(ours.seconds(1) for _ in range(2)))
        figures = {**_sizes(case), **ours.described, "first_update_s": round(first, 1), "updates": updates}
        rates: dict[str, list[float]] = {"tandem": [ours.rate(updates)], "timm": []}
        figures["peak_gib"] = _peak(case.device)
        work = 3 * forward_operations(ours.spec) / 1e12
        yield figures | _rates(rates, work, case.device)
        held = torch.cuda.memory_allocated(case.device) if case.device.type == "cuda" else 0  # ours, beside timm's
        timm = Timm(case._replace(updates=updates), [])
        _assert_on(next(timm.model.parameters()).device.type, case.device)
        timm.on_synthetic(2)
        if case.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(case.device)
        for _ in range(1 if setting.updates else _TURNS):
            rates["timm"].append(timm.on_synthetic(updates))
            figures["timm_peak_gib"] = _peak(case.device, less=held)
            rates["tandem"].append(ours.rate(updates))
            yield figures | _rates(rates, work, case.device)


def _rates(rates: dict[str, list[float]], work: float, device: torch.device) -> dict[str, Any]:
    best = {side: max(turns) for side, turns in rates.items() if turns}
    spread = {side: round(1 - min(turns) / max(turns), 3) for side, turns in rates.items() if turns}
    peak = peak_of(device)
    mfu = {side: round(work * rate / peak, 3) for side, rate in best.items()} if peak else None
    ratio = round(best["tandem"] / best["timm"], 3) if "timm" in best else None
    return {**_shown(best), "ratio": ratio, "spread": spread, "turns": len(rates["tandem"]), "mfu": mfu}


class Ours:
    """A session of the torch engine on the case's device, fed with one batch or with a loader's."""

    def __init__(self, case: Case, deterministic: bool = False):
        self.case, self.spec = case, registry.get(case.name, num_classes=CLASSES, image_size=case.size)
        self.session = opened_on(case, self.spec, deterministic)
        facts = self.session.describe()
        _assert_on(facts["device"].partition(":")[0], case.device)
        self.described = {"precision": facts["precision"], "compiled": facts["compiled"]}
        self._batch = batch_of(pixels(case.batch, case.size))

    def __enter__(self) -> Ours:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def seconds(self, updates: int) -> float:
        """Seconds an update of so many, all read."""
        return self.case.batch / self.rate(updates)

    def rate(self, updates: int, batches: Iterable[Batch] | None = None) -> float:
        """Images a second, read as the training loop does."""
        start = self.case.clock()
        count = run_steps(self.session, itertools.islice(batches or itertools.repeat(self._batch), updates))
        return count / (self.case.clock() - start)


def loader(setting: Setting) -> Figures:
    """Batches from JPEG files as the step takes them, normalised on the device: our loader with threads and with worker
    processes, and timm's, each alone."""
    case, paths = setting.of_files("resnet50"), jpegs(setting)
    way, prep = Transfer(case.device), registry.get(case.name).preprocessing
    mean, std = (torch.tensor(v, device=case.device) for v in (prep.mean, prep.std))
    prepare, theirs = step.Input(mean, std, 3, "fp32"), Timm(case, paths).loader

    def ours(processes: int) -> Iterator[torch.Tensor]:
        for loaded in loader_of(case, prep, paths, Images(0), processes).epoch(_order(paths)):
            yield prepare(way.send([loaded.images])[0])

    sides: dict[str, Callable[[], Iterator[torch.Tensor]]] = {
        "threads": lambda: ours(0),
        "processes": lambda: ours(case.workers),
        "timm": lambda: (images for images, _ in theirs),
    }
    rates: dict[str, float] = {}
    for side in [*sides] * (1 if setting.updates else 2):
        rates[side] = max(rates.get(side, 0.0), _consumed(sides[side](), case))
        best = max(rate for name, rate in rates.items() if name != "timm")
        ratio = round(best / rates["timm"], 3) if "timm" in rates else None
        sizes = {"size": case.size, "batch": case.batch, "workers": case.workers}
        yield {**sizes, **_shown(rates), "ratio": ratio}


def _consumed(batches: Iterator[torch.Tensor], case: Case) -> float:
    """Images a second over some seconds, from the second batch on: the first one waits for the start."""
    images = next(batches)
    _assert_on(images.device.type, case.device)
    start, count = time.perf_counter(), 0
    for images in itertools.islice(batches, case.updates):
        count += len(images)
        if time.perf_counter() - start > 4 * _TURN_S:
            break
    if case.device.type == "cuda":
        torch.cuda.synchronize(case.device)
    return count / (time.perf_counter() - start)


def fed(setting: Setting, name: str) -> Figures:
    """The step fed by the loader from JPEG files, against the step alone, and timm's loop over the same files."""
    case, paths = setting.of_files(name), jpegs(setting)
    processes = min(case.workers, 32) if case.workers > 8 else 0  # what data.processes auto comes to
    with Ours(case) as ours:
        ours.rate(2)
        updates = min(2 * setting.of_a_turn(ours.seconds(2)), len(paths) // case.batch - 1)
        alone, loader = ours.rate(updates), loader_of(case, ours.spec.preprocessing, paths, Images(0), processes)
        with closing(loader.epoch(_order(paths))) as epoch:
            next(epoch)  # its workers have started
            targets = batch_of(pixels(case.batch, case.size)).targets
            fed = ours.rate(updates, (Batch(loaded.images, targets, loaded.weight) for loaded in epoch))
        rates = {"step": alone, "step_and_loader": fed}
        figures = {**_sizes(case), **ours.described, "processes": processes, "loader_over_step": round(alone / fed, 3)}
        yield figures | _shown(rates)
    timm = Timm(case._replace(updates=updates), paths)
    timm.on_synthetic(2)
    rates["timm"] = max(timm.on_files() for _ in range(1 if setting.updates else 2))  # first its workers start
    yield {**figures, **_shown(rates), "ratio": round(fed / rates["timm"], 3)}


def inference(setting: Setting, name: str) -> Figures:
    """Our predictor from uint8 images of the host to logits there, in each precision, and timm's network in bf16 with
    its batch on the device."""
    from infer.runtimes import torch as predictor

    case = setting.case(name)._replace(batch=2 * setting.case(name).batch)
    rates, images = {}, pixels(case.batch, case.size)
    spec, card, arrays = fresh(case.name, case.size, CLASSES)
    half: Precision = "bf16" if (fast := resolved("auto", case.device)) == "fp32" else fast
    for label, precision, compiled in (("default", None, False), (half, half, False), (f"{half} compiled", half, True)):
        opened = predictor.open(card, spec, arrays, setting.device, precision, compiled)
        _assert_on(opened.device.type, case.device)
        rates[label] = _predicted(functools.partial(opened.logits, images), setting, case)
        opened.close()
        yield _sizes(case) | _shown(rates)
    timm = Timm(case, []).model.eval()
    batch = torch.randn(case.batch, 3, case.size, case.size, device=case.device)
    batch = batch.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward() -> None:
        with autocast(half, case.device):
            timm(batch).cpu()

    rates[f"timm {half}"] = _predicted(forward, setting, case)
    yield _sizes(case) | _shown(rates)


def deterministic(setting: Setting, name: str) -> Figures:
    """What `train.deterministic` costs in an eager step, and whether two sessions so end with the same bits."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # for both, as cuBLAS reads it once
    case, rates, ends = setting.case(name), {}, []
    for label in ("usual", "deterministic", "again"):
        with Ours(case, deterministic=label != "usual") as ours:
            ours.rate(3)
            if label != "usual":
                ends.append(ours.session.state().weights)
            if label != "again":
                rates[label] = ours.rate(setting.of_a_turn(ours.seconds(2)))
        cost = round(rates["usual"] / rates["deterministic"], 3) if len(rates) == 2 else None
        same = all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0]) if len(ends) == 2 else None
        yield {**_sizes(case), **_shown(rates), "usual_over_deterministic": cost, "same_bits": same}


def jpegs(setting: Setting) -> list[Path]:
    """JPEG files of 1000 x 750 pixels with coarse and fine structure, in a folder of one class; each stands there under
    many names. They are made by the first arm that needs them."""
    from PIL import Image

    folder = Path(setting.folder) / "images" / "class"
    distinct, files = (8, 64) if setting.tiny else (_DISTINCT, _FILES)
    if not folder.exists():
        draw, unfinished = np.random.default_rng(0), folder.with_name("partial")
        unfinished.mkdir(parents=True)
        for number in range(distinct):
            coarse = Image.fromarray(draw.integers(0, 256, (9, 12, 3), np.uint8)).resize(
                (1000, 750), Image.Resampling.BICUBIC
            )
            fine = np.asarray(coarse, np.int16) + draw.integers(-12, 13, (750, 1000, 1), np.int16)
            Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(unfinished / f"{number:05}.jpg", quality=90)
        for number in range(distinct, files):
            os.link(unfinished / f"{number % distinct:05}.jpg", unfinished / f"{number:05}.jpg")
        unfinished.rename(folder)
    return sorted(folder.iterdir())


def _order(paths: list[Path]) -> np.ndarray:
    return np.random.default_rng(0).permutation(len(paths))


def _predicted(call: Callable[[], object], setting: Setting, case: Case) -> float:
    """Images a second of repeated calls with a batch, after two that warm up."""
    for _ in range(1 if setting.updates else 2):
        call()
    start, calls = case.clock(), 0
    while not calls or (not setting.updates and case.clock() - start < _TURN_S):
        call()
        calls += 1
    return case.batch * calls / (case.clock() - start)


def _sizes(case: Case) -> dict[str, Any]:
    return {"model": case.name, "size": case.size, "batch": case.batch}


def _shown(rates: dict[str, float]) -> dict[str, Any]:
    return {"images_per_second": {name: rounded(rate) for name, rate in rates.items()}}


def _assert_on(used: str, device: torch.device) -> None:
    if used != device.type:
        raise RuntimeError(f"computes on {used}, not on {device.type}")


def _peak(device: torch.device, less: int = 0) -> float | None:
    """GiB that were allocated at most; None on the CPU."""
    return _gib(torch.cuda.max_memory_allocated(device) - less) if device.type == "cuda" else None


def _gib(count: int) -> float:
    return round(count / 2**30, 2)
