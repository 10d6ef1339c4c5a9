"""What `benchmarks.gpu` measures. An arm is a generator: each dict that it yields replaces the one before, so that what
was measured before the arm is stopped is kept. Every arm asserts that it computes on the device."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from backends.contract import Batch, Precision, Session, SessionConfig, TrainState
from backends.torch import model as networks
from backends.torch import session, step
from backends.torch.precision import autocast, resolved
from backends.torch.transfer import Transfer
from benchmarks import step_loop
from benchmarks.common import rounded
from benchmarks.timm_train import Timm
from benchmarks.torch_cases import CLASSES, LARGE, Case, forward_operations, peak_of
from config.errors import BackendUnavailable, OutOfMemory
from data.cores import cores
from models import registry
from models.card import Card

Figures = Iterator[dict[str, Any]]
TINY = {"resnet": "test_resnet", "vit": "test_vit", "convnext": "test_convnext", "tf": "test_efficientnet"}
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

    def case(self, name: str, compiled: bool) -> Case:
        """The network of the table, or its small stand-in."""
        size, batch = next((size, batch) for known, size, batch in LARGE if known == name)
        if self.tiny:
            name, size, batch = TINY[name.partition("_")[0].rstrip("0123456789")], 32, 4
        device, batch = torch.device(self.device), max(1, batch >> self.halved)
        return Case(name, size, batch, self.updates, self.workers, "default" if compiled else False, device)

    def of_a_turn(self, seconds: float) -> int:
        """The updates of a turn when one takes so long."""
        return self.updates or max(4, round(_TURN_S / seconds))


def run(setting: Setting, name: str, arguments: tuple[Any, ...]) -> Figures:
    """The figures of the arm called `name`; its batch is halved until it fits into the device's memory."""
    if setting.tiny:
        torch.compile = functools.partial(torch.compile, disable=True)
    arms = (machine, train, loader, fed, inference, onnx, mlx, deterministic)
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
    found: dict[str, Any] = {"name": str(device), "cores": cores()}
    if device.type == "cuda":
        own = torch.cuda.get_device_properties(device)
        found |= {"name": own.name, "memory_gib": _gib(own.total_memory), "capability": f"{own.major}.{own.minor}"}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "peak_tflops": peak_of(device)}
    names = ("torch", "timm", "onnxruntime", "onnxruntime-gpu", "mlx")
    yield found | {"precision": resolved("auto", device), "versions": {n: v for n in names if (v := _version(n))}}


def train(setting: Setting, name: str, compiled: bool) -> Figures:
    """A training step from uint8 batches of the host, and timm's loop with a batch that is on the device, in turn."""
    case = setting.case(name, compiled)
    with Ours(case) as ours:
        first = ours.seconds(1)
        updates = setting.of_a_turn(min(ours.seconds(1) for _ in range(2)))
        figures: dict[str, Any] = {"model": case.name, "size": case.size, "batch": case.batch, **ours.described}
        figures |= {"first_update_s": round(first, 1), "updates": updates}
        rates: dict[str, list[float]] = {"tandem": [ours.rate(updates)], "timm": []}
        figures["peak_gib"] = _peak(case.device)
        work = 3 * forward_operations(ours.spec) / 1e12
        yield figures | _rates(rates, work, case.device)
        held = _allocated(case.device)  # ours, while timm's is measured
        timm = Timm(case._replace(updates=updates), [])
        _assert_on(next(timm.model.parameters()).device.type, case.device)
        timm.on_synthetic(2)
        _reset_peak(case.device)
        for _ in range(1 if setting.updates else _TURNS):
            rates["timm"].append(timm.on_synthetic(updates))
            figures["timm_peak_gib"] = _peak(case.device, less=held)
            rates["tandem"].append(ours.rate(updates))
            yield figures | _rates(rates, work, case.device)


def _rates(rates: dict[str, list[float]], work: float, device: torch.device) -> dict[str, Any]:
    best = {side: max(found) for side, found in rates.items() if found}
    spread = {side: round(1 - min(found) / max(found), 3) for side, found in rates.items() if found}
    peak = peak_of(device)
    mfu = {side: round(work * rate / peak, 3) for side, rate in best.items()} if peak else None
    ratio = round(best["tandem"] / best["timm"], 3) if "timm" in best else None
    shown = {side: rounded(rate) for side, rate in best.items()}
    return {"images_per_second": shown, "ratio": ratio, "spread": spread, "turns": len(rates["tandem"]), "mfu": mfu}


class Ours:
    """A session of the torch engine on the case's device, fed with one batch or with a loader's."""

    def __init__(self, case: Case, deterministic: bool = False):
        self.case, self.spec = case, registry.get(case.name, num_classes=CLASSES, image_size=case.size)
        os.environ[session.DEVICE_VARIABLE] = str(case.device)
        self.session: Session = session.open(
            self.spec, None, SessionConfig(precision="auto", compile=case.compile, deterministic=deterministic)
        )
        facts = self.session.describe()
        _assert_on(facts["device"].partition(":")[0], case.device)
        self.described = {"precision": facts["precision"], "compiled": facts["compiled"]}
        self._batch = step_loop.batch_of(_images(case, case.batch))

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
        count = step_loop.run_steps(self.session, itertools.islice(batches or itertools.repeat(self._batch), updates))
        return count / (self.case.clock() - start)


def loader(setting: Setting) -> Figures:
    """Batches from JPEG files as the step takes them, normalised on the device: our loader with threads and with worker
    processes, and timm's, each alone."""
    case, paths = setting.case("resnet50", False), jpegs(setting)
    case = case._replace(size=224, workers=setting.workers or cores(), updates=setting.updates or 10**6)
    way, spec = Transfer(case.device), registry.get(case.name)
    mean, std = (torch.tensor(v, device=case.device) for v in (spec.preprocessing.mean, spec.preprocessing.std))
    prepare, theirs = step.Input(mean, std, 3, "fp32"), Timm(case, paths).loader

    def ours(processes: int) -> Iterator[torch.Tensor]:
        for loaded in _loader(case, paths, processes).epoch(_order(paths)):
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
        shown = {name: rounded(rate) for name, rate in rates.items()}
        figures = {"size": case.size, "batch": case.batch, "workers": case.workers, "images_per_second": shown}
        yield figures | {"ratio": ratio}


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
    paths, case = jpegs(setting), setting.case(name, False)
    case = case._replace(size=224, workers=setting.workers or cores())
    processes = min(case.workers, 32) if case.workers > 8 else 0  # what data.processes auto comes to
    with Ours(case) as ours:
        ours.rate(2)
        updates = min(2 * setting.of_a_turn(ours.seconds(2)), len(paths) // case.batch - 1)
        figures: dict[str, Any] = {"model": case.name, "size": case.size, "batch": case.batch, **ours.described}
        figures["processes"] = processes
        alone = ours.rate(updates)
        with closing(_loader(case, paths, processes).epoch(_order(paths))) as epoch:
            next(epoch)  # its workers have started
            targets = step_loop.batch_of(_images(case, case.batch)).targets
            fed = ours.rate(updates, (Batch(loaded.images, targets, loaded.weight) for loaded in epoch))
        shown = {"step": rounded(alone), "step_and_loader": rounded(fed)}
        figures |= {"images_per_second": shown, "loader_over_step": round(alone / fed, 3)}
        yield figures
    timm = Timm(case._replace(updates=updates), paths)
    timm.on_synthetic(2)
    shown["timm"] = rounded(max(timm.on_files() for _ in range(1 if setting.updates else 2)))  # first its workers start
    yield figures | {"ratio": round(fed / shown["timm"], 3)}


def inference(setting: Setting, name: str) -> Figures:
    """Our predictor from uint8 images of the host to logits there, in each precision, and timm's network in bf16 with
    its batch on the device."""
    from infer.runtimes import torch as predictor

    case = setting.case(name, False)
    spec, rates, arrays = registry.get(case.name, num_classes=CLASSES, image_size=case.size), {}, _weights(case)
    images = _images(case, 2 * case.batch)
    half: Precision = "bf16" if (fast := resolved("auto", case.device)) == "fp32" else fast
    figures = {"model": case.name, "size": case.size, "batch": len(images)}
    for label, precision, compiled in (("default", None, False), (half, half, False), (f"{half} compiled", half, True)):
        opened = predictor.open(_card(case), spec, arrays, setting.device, precision, compiled)
        _assert_on(opened.device.type, case.device)
        rates[label] = rounded(_predicted(lambda opened=opened: opened.logits(images), len(images), setting, case))
        opened.close()
        yield figures | {"images_per_second": rates}
    timm = Timm(case, []).model.eval()
    batch = torch.randn(len(images), 3, case.size, case.size, device=case.device).contiguous(
        memory_format=torch.channels_last
    )

    @torch.inference_mode()
    def forward() -> None:
        with autocast(half, case.device):
            timm(batch).cpu()

    rates[f"timm {half}"] = rounded(_predicted(forward, len(images), setting, case))
    yield figures | {"images_per_second": rates}


def onnx(setting: Setting, name: str) -> Figures:
    """The exported network in ONNX Runtime, with the providers that the session really has."""
    import onnxruntime
    import onnxscript

    from convert.graph import torch_network
    from convert.onnx import export as to_onnx
    from infer.runtimes import onnx as predictor

    case = setting.case(name, False)
    network = torch_network.classifier(_weights(case), _card(case))
    file = to_onnx.write(network, _card(case), Path(setting.folder) / "member.onnx", overwrite=True)
    opened = predictor.open(file, ("cuda" if case.device.type == "cuda" else "cpu",))
    first = opened.providers[0]
    _assert_on(first.removesuffix("ExecutionProvider").lower(), case.device)
    images = _images(case, 2 * case.batch)
    difference = np.abs(opened.logits(images[:4]) - torch_network.once(network, images[:4])).max()
    rate = _predicted(lambda: opened.logits(images), len(images), setting, case)
    yield {
        "model": case.name,
        "size": case.size,
        "batch": len(images),
        "providers": list(opened.providers),
        "images_per_second": rounded(rate),
        "largest_difference_to_torch_fp32": float(f"{difference:.2g}"),
        "versions": {"onnxruntime": onnxruntime.__version__, "onnxscript": onnxscript.__version__},
    }


def mlx(setting: Setting, name: str) -> Figures:
    """The MLX engine's training step on MLX's CUDA back end."""
    import mlx.core as mx

    from backends.mlx import session as engine

    case = setting.case(name, False)
    if case.device.type == "cuda" and mx.default_device().type != mx.DeviceType.gpu:
        raise BackendUnavailable('this mlx has no CUDA back end; run: pip install "mlx[cuda13]"')
    spec = registry.get(case.name, num_classes=CLASSES, image_size=case.size)
    batches = [step_loop.batch_of(_images(case, case.batch))]
    opened = engine.open(spec, None, SessionConfig(precision="bf16", compile=not setting.tiny))
    _assert_on({"gpu": "cuda"}.get(own := mx.default_device().type.name, own), case.device)
    step_loop.run_steps(opened, batches)
    taken, count = 0.0, 0
    while taken < _TURN_S and not (setting.updates and count):
        start = time.perf_counter()
        count += step_loop.run_steps(opened, batches)
        taken += time.perf_counter() - start
    memory = _gib(mx.get_peak_memory())
    opened.close()
    rate = rounded(count / taken)
    figures = {"model": case.name, "size": case.size, "batch": case.batch, "precision": "bf16"}
    yield figures | {"images_per_second": rate, "peak_gib": memory, "versions": {"mlx": _version("mlx")}}


def deterministic(setting: Setting, name: str) -> Figures:
    """What `train.deterministic` costs in an eager step, and whether two sessions so end with the same bits."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # for both, as cuBLAS reads it once
    case, rates, ends = setting.case(name, False), {}, []
    figures = {"model": case.name, "size": case.size, "batch": case.batch}
    for label in ("usual", "deterministic", "again"):
        with Ours(case, deterministic=label != "usual") as ours:
            ours.rate(3)
            if label != "usual":
                ends.append(ours.session.state())
            if label != "again":
                rates[label] = ours.rate(setting.of_a_turn(ours.seconds(2)))
        shown = {each: rounded(rate) for each, rate in rates.items()}
        cost = round(rates["usual"] / rates["deterministic"], 3) if len(rates) == 2 else None
        same = _same(*ends) if len(ends) == 2 else None
        yield figures | {"images_per_second": shown, "usual_over_deterministic": cost, "same_bits": same}


def jpegs(setting: Setting) -> list[Path]:
    """JPEG files of 1000 x 750 pixels with coarse and fine structure, in a folder of one class; each stands there under
    many names. They are made by the first arm that needs them."""
    from PIL import Image

    folder = Path(setting.folder) / "images" / "class"
    distinct, files = (8, 64) if setting.tiny else (_DISTINCT, _FILES)
    if not folder.exists():
        draw, made = np.random.default_rng(0), folder.with_name("partial")
        made.mkdir(parents=True)
        for number in range(distinct):
            coarse = Image.fromarray(draw.integers(0, 256, (9, 12, 3), np.uint8)).resize((1000, 750), Image.BICUBIC)
            fine = np.asarray(coarse, np.int16) + draw.integers(-12, 13, (750, 1000, 1), np.int16)
            Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(made / f"{number:05}.jpg", quality=90)
        for number in range(distinct, files):
            os.link(made / f"{number % distinct:05}.jpg", made / f"{number:05}.jpg")
        made.rename(folder)
    return sorted(folder.iterdir())


def _loader(case: Case, paths: list[Path], processes: int) -> Any:
    """Our loader with the changes of timm's defaults: crop, flip, brightness, contrast, saturation."""
    from benchmarks.loader import transform
    from data.cache.images import Images
    from data.loading.loader import Loader

    images = Images(0)
    return Loader(paths, transform(), case.size, case.batch, case.workers, images=images, processes=processes)


def _order(paths: list[Path]) -> np.ndarray:
    return np.random.default_rng(0).permutation(len(paths))


def _predicted(call: Callable[[], object], images: int, setting: Setting, case: Case) -> float:
    """Images a second of repeated calls, after two that warm up."""
    for _ in range(1 if setting.updates else 2):
        call()
    start, calls = case.clock(), 0
    while not calls or (not setting.updates and case.clock() - start < _TURN_S):
        call()
        calls += 1
    return images * calls / (case.clock() - start)


def _images(case: Case, count: int) -> np.ndarray:
    return step_loop.images(count, case.size)


def _card(case: Case) -> Card:
    spec = registry.get(case.name, num_classes=CLASSES, image_size=case.size)
    names = tuple(map(str, range(CLASSES)))
    return Card(case.name, names, spec.preprocessing, {"image_size": case.size}, "torch")


def _weights(case: Case) -> dict[str, np.ndarray]:
    spec = registry.get(case.name, num_classes=CLASSES, image_size=case.size)
    return networks.to_arrays(networks.canonical_tensors(networks.build(spec)))


def _same(one: TrainState, other: TrainState) -> bool:
    return all(np.array_equal(array, other.weights[name]) for name, array in one.weights.items())


def _assert_on(found: str, device: torch.device) -> None:
    if found != device.type:
        raise RuntimeError(f"computes on {found}, not on {device.type}")


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _peak(device: torch.device, less: int = 0) -> float | None:
    """GiB that were allocated at most; None on the CPU."""
    return _gib(torch.cuda.max_memory_allocated(device) - less) if device.type == "cuda" else None


def _gib(count: int) -> float:
    return round(count / 2**30, 2)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
