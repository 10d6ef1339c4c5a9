"""The arms of `benchmarks step` with MLX: our step and loop, and mlx-image's trainer."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import backends
from backends.contract import StepHyperparams
from benchmarks import common
from benchmarks.steps import step
from benchmarks.steps.step import CLASSES, Seconds
from config.errors import BackendUnavailable
from models import registry
from models.registry import ModelSpec

SMALL, LARGE = ("resnet18", "efficientnet_b0", "vit_tiny"), ("resnet50", "efficientnet_b0", "vit_base")
# (width, heads, depth) of the transformers, whose patches must suit the image.
_VITS = {"vit_tiny": (192, 3, 12), "vit_base": (768, 12, 12)}
_HYPERPARAMS = StepHyperparams(lr=1e-4, weight_decay=0.01, ema_decay=0.0, clip_norm=0.0)


def run(arguments: argparse.Namespace, _folder: Path) -> dict[str, dict[str, Any]]:
    """Seconds of an update and what belongs to them, for each network."""
    backends.require("mlx")
    if not backends.installed("mlxim"):
        raise BackendUnavailable("mlx-image is not installed here; run: pip install --no-deps mlx-image==0.1.10")
    size, batch, updates = (224, 64, 20) if arguments.gpu else (32, 16, 4)
    size, batch, updates = arguments.size or size, arguments.batch or batch, arguments.updates or updates
    names = arguments.models or (LARGE if arguments.gpu else SMALL)
    return {
        name: {"size": size, "batch": batch, "seconds": measured(name, size, batch, updates, arguments.repeats)}
        for name in names
    }


def measured(name: str, size: int, batch: int, updates: int, repeats: int) -> Seconds:
    """The arms of one network in turn."""
    import mlx.core as mx

    # The CPU's own seconds where that is what computes, so that other programs on it do not count.
    clock = time.process_time if mx.default_device().type == mx.cpu else time.perf_counter
    spec, images = _spec(name, size), step.pixels(batch, size)
    session = backends.load("mlx").open(spec, None)
    inputs, train = step.batch_of(images), step.Repeated(images)
    epoch, count = _mlx_image(name, size, images, updates)
    ours = sum(v.size for n, v in session.state().weights.items() if "running_" not in n)
    if ours != count:
        raise BackendUnavailable(f"{name}: mlx-image's network has {count:,} parameters, ours {ours:,}; not the same")

    def bare() -> int:
        return step.run_steps(session, repeat(inputs, updates), _HYPERPARAMS)

    arms = {
        "loop": lambda: step.loop_seconds(session, spec, train, updates, clock),
        "bare": lambda: common.seconds(bare, clock) / updates,
        "mlx_image": lambda: common.seconds(epoch, clock) / updates,
    }
    seconds = common.in_turn(arms, repeats)
    session.close()
    return seconds


def _spec(name: str, size: int) -> ModelSpec:
    if name not in _VITS:
        return registry.get(name, num_classes=CLASSES, image_size=size)
    width, heads, depth = _VITS[name]
    spec = registry.get("vit_tiny_patch16_224", num_classes=CLASSES, image_size=size)
    args = {"patch_size": _patch(size), "embed_dim": width, "num_heads": heads, "depth": depth}
    return replace(spec, args={**spec.args, **args})


def _patch(size: int) -> int:
    return 16 if size >= 128 else 8


def _mlx_image(name: str, size: int, images: NDArray[np.uint8], updates: int) -> tuple[Callable[[], None], int]:
    """mlx-image's trainer on its own network, as a function that trains an epoch, and its number of parameters."""
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers
    from mlxim.model import create_model
    from mlxim.model.vit.vit import VisionTransformer
    from mlxim.trainer.trainer import Trainer

    network: Any
    if name in _VITS:
        width, heads, depth = _VITS[name]
        network = VisionTransformer(size, _patch(size), depth, heads, width, 4 * width, num_classes=CLASSES)
    else:
        network = create_model(name, weights=False, num_classes=CLASSES)
    pixels = mx.array((images.astype(np.float32) / 255 - 0.5) / 0.25)
    targets = mx.array(np.arange(len(images)) % CLASSES)
    mx.eval(network.parameters(), pixels, targets)
    trainer = Trainer(
        network,
        mlx.optimizers.AdamW(1e-4, weight_decay=0.01, bias_correction=True),
        nn.losses.cross_entropy,
        [(pixels, targets)] * updates,
        loss_fn_args={},
        log_every=1.0,
        device=mx.default_device(),
    )

    def epoch() -> None:
        with contextlib.redirect_stdout(None):
            trainer.train_epoch()

    return epoch, sum(v.size for _, v in mlx.utils.tree_flatten(network.trainable_parameters()))
