"""Tandem's MLX step, and its loop around it, against mlx-image's trainer: same network and batch, in turn, in one run.

    python -m benchmarks.mlx_step --json                          # a CPU: small networks, 32 pixels
    python -m benchmarks.mlx_step --gpu                           # Metal or CUDA: 224 pixels, batches of 64

`ratios` are mlx-image's seconds over ours for a step (above 1 we are faster), `loop` what our loop takes more than the
bare step, as a share of it: medians over the rounds, of CPU seconds where MLX runs on the CPU. mlx-image steps through
its own `Trainer.train_epoch`, which updates and measures accuracy; our loop is `training.loop.trainer` with images that
are there already. Both in fp32, AdamW.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import backends
from backends.contract import Batch, Session, StepHyperparams
from benchmarks import common
from config import load
from config.errors import BackendUnavailable, TandemError
from data.loading.loader import Loaded
from models import registry
from models.card import Card
from models.registry import ModelSpec
from training.loop import trainer
from training.loop.fold_data import FoldData
from training.loop.state import Callbacks
from training.policy.resizing import ResizeStage

CLASSES = 10
GOAL = 0.03  # of a step, for the loop around it
SMALL, LARGE = ("resnet18", "efficientnet_b0", "vit_tiny"), ("resnet50", "efficientnet_b0", "vit_base")
# (ours, mlx-image's) arguments of the transformers, whose patches must suit the image.
_VITS = {"vit_tiny": (192, 3, 12), "vit_base": (768, 12, 12)}
_IN_FLIGHT = 4
_KNOBS = StepHyperparams(lr=1e-4, weight_decay=0.01, ema_decay=0.0, clip_norm=0.0)
Seconds = dict[str, list[float]]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table or JSON; 1 where a network is `slower` (see `run`) or the loop costs more than 3%."""
    parser = common.parser(__doc__)
    parser.add_argument("--gpu", action="store_true", help="sizes for Metal or CUDA")
    parser.add_argument("--model", nargs="+", choices=sorted({*SMALL, *LARGE}))
    parser.add_argument("--size", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="steps of each kind in a round")
    given = parser.parse_args(argv)
    size, batch, steps = (224, 64, 20) if given.gpu else (32, 16, 4)
    size, batch, steps = given.size or size, given.batch or batch, given.steps or steps
    try:
        result = run(given.model or (LARGE if given.gpu else SMALL), size, batch, given.rounds, steps)
    except TandemError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(result, indent=1) if given.json else text(result))
    return int(bool(result["slower"]) or result["loop"] > GOAL)


def run(names: Sequence[str], size: int, batch: int, rounds: int, steps: int) -> dict[str, Any]:
    """All networks: `ratios` and `loops` by network, `loop` their mean, and all seconds of a step.

    `slower` names the networks with which mlx-image is faster in three quarters of the rounds.
    """
    backends.require("mlx")
    if not backends.installed("mlxim"):
        raise BackendUnavailable("mlx-image is not installed here; run: pip install --no-deps mlx-image==0.1.10")
    seconds = {name: measure(name, size, batch, rounds, steps) for name in names}
    loops = {name: _median(each["loop"], each["step"]) - 1 for name, each in seconds.items()}
    return {
        "ratios": {name: round(_median(each["mlx_image"], each["step"]), 3) for name, each in seconds.items()},
        "loops": {name: round(share, 4) for name, share in loops.items()},
        "loop": round(statistics.mean(loops.values()), 4),
        "slower": [name for name, each in seconds.items() if _slower(each["mlx_image"], each["step"])],
        "seconds": {name: {k: [round(s, 4) for s in v] for k, v in each.items()} for name, each in seconds.items()},
        "sizes": {"pixels": size, "batch": batch, "rounds": rounds, "steps": steps},
        **about(),
    }


def about() -> dict[str, str]:
    """The machine, the versions, the date and the command."""
    import mlx.core as mx

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mlx", "mlx-image"))
    chip = mx.device_info().get("device_name", "")
    return {
        "device": f"{mx.default_device().type.name}: {chip}, {os.cpu_count()} cores, {platform.platform()}",
        "versions": versions,
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "command": f"python -m benchmarks.mlx_step {' '.join(sys.argv[1:])}".strip(),
    }


def measure(name: str, size: int, batch: int, rounds: int, steps: int) -> Seconds:
    """Seconds of a step, by round: of mlx-image's trainer, of our bare step, and of our loop."""
    spec, images = _spec(name, size), _images(batch, size)
    session = backends.load("mlx").open(spec, None)
    theirs = _trainer(name, size, images, steps)
    _same_size(name, session, theirs)
    found: Seconds = {"mlx_image": [], "step": [], "loop": []}
    labels = np.arange(batch) % CLASSES
    ours = Batch(images, np.eye(CLASSES, dtype=np.float32)[labels], np.ones(batch, np.float32))
    _bare(session, ours, _IN_FLIGHT + 1)  # traced before the first round, as the trainer is by its first epoch
    theirs()

    def after_epoch(seconds: float) -> None:
        found["loop"].append(seconds / steps)
        found["step"].append(_timed(functools.partial(_bare, session, ours, steps)) / steps)
        found["mlx_image"].append(_timed(theirs) / steps)

    _loop(session, spec, images, labels, steps, rounds + 1, after_epoch)
    session.close()
    return {kind: each[1:] for kind, each in found.items()}


def _bare(session: Session, batch: Batch, steps: int) -> None:
    """Our step as fast as it goes: some in flight, each read."""
    pending: deque[Any] = deque()
    for _ in range(steps):
        pending.append(session.train_step(batch, None, _KNOBS))
        if len(pending) > _IN_FLIGHT:
            session.read(pending.popleft())
    while pending:
        session.read(pending.popleft())


class _Ready:
    """In place of a data loader: the same images at once. `began` is when the last epoch was asked for, after `first`
    was called."""

    def __init__(self, images: NDArray[np.uint8]):
        self.first: Callable[[], None] = lambda: None
        self.paths = [Path(str(i)) for i in range(len(images))]
        self.bad: dict[Path, str] = {}
        self.began = 0.0
        self._images = images

    def epoch(self, order: NDArray[np.int64], epoch: int = 0, first_batch: int = 0) -> Iterator[Loaded]:  # noqa: ARG002
        """Batches of `order`, all of the same images."""
        self.first()
        count, self.began = len(self._images), _clock()()
        for start in range(first_batch * count, len(order), count):
            yield Loaded(self._images, order[start : start + count], np.ones(count, np.float32))


def _loop(
    session: Session,
    spec: ModelSpec,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    steps: int,
    epochs: int,
    after: Callable[[float], None],
) -> None:
    """`training.loop.trainer` for some epochs of `steps` updates; it keeps no checkpoint in between.

    `after` gets each epoch's seconds, from its first image until validation begins.
    """
    train, valid = _Ready(images), _Ready(images)
    words = ["--train.epochs", str(epochs), "--train.batch_size", str(len(images)), "--schedule.warmup_epochs", "0"]
    words += ["--stopping.min_delta", "1e9", "--stopping.metric", "log_loss", "--checkpoint.every_epochs", str(epochs)]
    words += ["--checkpoint.every_minutes", "0", "--optim.lr", "1e-4", "--ema.decay", "0"]
    all_labels = np.tile(labels, steps)
    data: Any = FoldData(
        stages=(ResizeStage(epochs, images.shape[1], len(images)),),
        train=(train,),  # type: ignore[arg-type]
        train_labels=all_labels,
        train_targets=np.eye(CLASSES, dtype=np.float32)[all_labels],
        train_weights=np.ones(len(all_labels), np.float32),
        valid=valid,  # type: ignore[arg-type]
        valid_labels=labels,
        valid_ids=[str(i) for i in range(len(labels))],
        raise_to={},
    )
    card = Card(spec.name, tuple(map(str, range(CLASSES))), spec.preprocessing)
    with tempfile.TemporaryDirectory() as place:
        settings = load.parse(["--data.root", place, "--model", spec.name, *words], prog="benchmark")
        folder = Path(place) / "fold_0"
        folder.mkdir()
        events = Callbacks(epoch=lambda _row, _best: after(valid.began - train.began))
        fit = trainer.Trainer(session, data, settings, card, folder, events)
        train.first = fit.saver.wait  # writing goes on in the background; `benchmarks.checkpoint` measures it
        fit.run()


def _spec(name: str, size: int) -> ModelSpec:
    if name not in _VITS:
        return registry.get(name, num_classes=CLASSES, image_size=size)
    width, heads, depth = _VITS[name]
    spec = registry.get("vit_tiny_patch16_224", num_classes=CLASSES, image_size=size)
    own = {"patch_size": _patch(size), "embed_dim": width, "num_heads": heads, "depth": depth}
    return replace(spec, args={**spec.args, **own})


def _patch(size: int) -> int:
    return 16 if size >= 128 else 8


def _trainer(name: str, size: int, images: NDArray[np.uint8], steps: int) -> Callable[[], Any]:
    """mlx-image's trainer on its own network, as a function that trains an epoch of `steps` steps."""
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers
    from mlxim.model import create_model
    from mlxim.model.vit.vit import VisionTransformer
    from mlxim.trainer.trainer import Trainer

    if name in _VITS:
        width, heads, depth = _VITS[name]
        network: Any = VisionTransformer(size, _patch(size), depth, heads, width, 4 * width, num_classes=CLASSES)
    else:
        network = create_model(name, weights=False, num_classes=CLASSES)
    pixels = mx.array((images.astype(np.float32) / 255 - 0.5) / 0.25)
    targets = mx.array(np.arange(len(images)) % CLASSES)
    mx.eval(network.parameters(), pixels, targets)
    trainer = Trainer(
        network,
        mlx.optimizers.AdamW(1e-4, weight_decay=0.01, bias_correction=True),
        nn.losses.cross_entropy,
        [(pixels, targets)] * steps,
        loss_fn_args={},
        log_every=1.0,
        device=mx.default_device(),
    )

    def epoch() -> int:
        with contextlib.redirect_stdout(None):
            trainer.train_epoch()
        return sum(v.size for _, v in mlx.utils.tree_flatten(network.trainable_parameters()))

    return epoch


def _same_size(name: str, session: Session, theirs: Callable[[], int]) -> None:
    ours = sum(v.size for n, v in session.state().weights.items() if "running_" not in n)
    if ours != (count := theirs()):
        raise BackendUnavailable(f"{name}: mlx-image's network has {count:,} parameters, ours {ours:,}; not the same")


def _images(batch: int, size: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)


def _clock() -> Callable[[], float]:
    """Seconds: the CPU's own where that is what computes, so that other programs on it do not count."""
    import mlx.core as mx

    return time.process_time if mx.default_device().type == mx.cpu else time.perf_counter


def _timed(function: Callable[[], Any]) -> float:
    clock = _clock()
    start = clock()
    function()
    return clock() - start


def _median(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def _slower(theirs: list[float], ours: list[float]) -> bool:
    return sum(a < b for a, b in zip(theirs, ours, strict=True)) >= 0.75 * len(ours)


def text(result: dict[str, Any]) -> str:
    """A Markdown table."""
    rows = ["| network | mlx-image, ms | our step, ms | ratio | our loop, ms | loop |", "|---|---|---|---|---|---|"]
    for name, each in result["seconds"].items():
        theirs, step, loop = (f"{1e3 * statistics.median(each[k]):.1f}" for k in ("mlx_image", "step", "loop"))
        rows.append(
            f"| {name} | {theirs} | {step} | {result['ratios'][name]:.2f} | {loop} | {result['loops'][name]:+.1%} |"
        )
    sizes = ", ".join(f"{value} {key}" for key, value in result["sizes"].items())
    return "\n".join([*rows, "", f"{sizes}; {result['device']}; {result['versions']}; {result['date']}"])


if __name__ == "__main__":
    raise SystemExit(main())
