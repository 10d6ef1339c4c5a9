"""Does it learn? One small network from scratch on a CIFAR-10 subset, with Tandem and with timm, in accuracy.

Network, image size, epochs, batch, optimizer, rate and warm-up are equal in all arms; what a recipe adds differs:

- `tandem`: this project's, through `training.run.train_run`, as a user runs it.
- `timm`: the recipe that timm's `train.py` is best known for from scratch (RandAugment, Mixup and CutMix, random
  erasing, label smoothing, EMA with warm-up, cosine), through timm's public API in the order of its training loop.
- `timm_same`: timm's API again with the nearest counterparts of the `tandem` arm's settings: what remains between
  these two is implementation, not recipe.

Every figure is the accuracy after the last epoch on test images that decided nothing.
Results: docs/engineering/accuracy.md.
Command: `python -m benchmarks accuracy --data cifar10-subset.tar.xz --seeds 3`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import Mixup, create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad, random_seed
from torch import nn

from benchmarks import common
from benchmarks.common import Result, comparison, option
from config import load
from training.run import train_run

# What all arms share; sizes in pixels and images, the rate is AdamW's peak.
MODEL, SIZE, BATCH = "test_resnet", 32, 64
RATE, MIN_RATIO, WEIGHT_DECAY, WARMUP_EPOCHS, SMOOTHING = 2e-3, 0.01, 0.05, 1, 0.1
SHARED = f"""
    --model {MODEL} --weights none --data.image_size {SIZE} --train.batch_size {BATCH} --train.precision fp32
    --train.compile off --data.workers 1 --optim.lr {RATE} --optim.weight_decay {WEIGHT_DECAY}
    --schedule.warmup_epochs {WARMUP_EPOCHS} --schedule.min_lr_ratio {MIN_RATIO} --loss.label_smoothing {SMOOTHING}
"""
# A crop and a flip: of two choices the better on a hold-out of the training images (a few epochs overfit nothing).
TANDEM = ("--augment.level", "minimal", "--augment.ops", "{affine: false}", "--augment.min_scale", "0.5")
# The from-scratch recipe that DeiT, Swin and ConvNeXt published on timm. Without mmax9 its RandAugment stops with
# Pillow 12, as a magnitude of 10 asks it to keep 0 bits.
TIMM = {
    "loader": {"auto_augment": "rand-m9-mstd0.5-mmax9-inc1", "re_prob": 0.25, "re_mode": "pixel"},
    "mixup": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0},
    "ema_decay": 0.9998,
}
TIMM_SAME = {"loader": {"scale": (0.5, 1.0), "color_jitter": 0.0}, "clip": 1.0}


def tandem(data: Path, epochs: int, seed: int) -> float:
    """The test accuracy of this project's recipe."""
    with tempfile.TemporaryDirectory() as out:
        words = ["--data.root", str(data), "--out", out, "--seed", str(seed), "--train.epochs", str(epochs)]
        run = train_run.run_all("torch", load.parse([*words, *SHARED.split(), *TANDEM], prog="accuracy"), lambda: False)
        with (run / "fold_0" / "history.csv").open(newline="") as stream:
            return float(list(csv.DictReader(stream))[-1]["accuracy"])


def through_timm(recipe: dict[str, Any], data: Path, epochs: int, seed: int) -> float:
    """The test accuracy of a recipe of timm's."""
    random_seed(seed)
    model = timm.create_model(MODEL, num_classes=10)
    shared, plain = timm_options(model, SIZE, BATCH)
    augmented = {"is_training": True, "interpolation": "random", "color_jitter": 0.4, **recipe["loader"]}
    train = create_loader(create_dataset("", root=str(data / "train")), **augmented, **shared)
    test = create_loader(create_dataset("", root=str(data / "val")), **plain)
    mix = Mixup(**recipe["mixup"], label_smoothing=SMOOTHING, num_classes=10) if "mixup" in recipe else None
    optimizer = create_optimizer_v2(model, opt="adamw", lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = {"warmup_epochs": WARMUP_EPOCHS, "min_lr": RATE * MIN_RATIO}
    more = {key: recipe[key] for key in ("ema_decay", "clip") if key in recipe}
    for trained in timm_epochs(model, train, optimizer, epochs, SMOOTHING, mix, **more, **schedule):
        last = trained
    return accuracy(last, test)


def timm_epochs(
    model: nn.Module,
    train: Any,
    optimizer: Any,
    epochs: int,
    smoothing: float,
    mix: Mixup | None = None,
    ema_decay: float = 0.0,
    clip: float | None = None,
    **schedule: float,
) -> Iterator[nn.Module]:
    """timm's train.py, its cosine schedule updated each step: after each epoch the network or its moving average."""
    loss = SoftTargetCrossEntropy() if mix else LabelSmoothingCrossEntropy(smoothing)
    steps: Any = {"sched": "cosine", "num_epochs": epochs, "step_on_epochs": False, "updates_per_epoch": len(train)}
    scheduler, _ = create_scheduler_v2(optimizer, **steps, **schedule)
    average = ModelEmaV3(model, decay=ema_decay, use_warmup=True) if ema_decay else None
    update = 0
    for _ in range(epochs):
        model.train()
        for images, targets in train:
            mixed = mix(images, targets) if mix else (images, targets)
            optimizer.zero_grad()
            loss(model(mixed[0]), mixed[1]).backward()
            if clip:
                dispatch_clip_grad(model.parameters(), clip)
            optimizer.step()
            update += 1
            if average:
                average.update(model, step=update)
            scheduler.step_update(num_updates=update)
        yield average.module if average else model


def timm_options(model: nn.Module, size: int, batch_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What timm's loaders of training images take, on the CPU and in this process, and what those of test images do."""
    config = resolve_data_config({"input_size": (3, size, size)}, model=model)
    shared = {key: config[key] for key in ("input_size", "mean", "std")}
    shared |= {"batch_size": batch_size, "use_prefetcher": False, "num_workers": 0, "persistent_workers": False}
    shared |= {"device": torch.device("cpu")}
    return shared, {key: config[key] for key in ("interpolation", "crop_pct")} | shared


@torch.no_grad()
def accuracy(model: nn.Module, loader: Any) -> float:
    """The share of a loader's images whose largest logit is the right one."""
    model.eval()
    hits = [(model(images).argmax(1) == targets).float() for images, targets in loader]
    return float(torch.cat(hits).mean())


ARMS: dict[str, Callable[[Path, int, int], float]] = {
    "tandem": tandem,
    "timm": partial(through_timm, TIMM),
    "timm_same": partial(through_timm, TIMM_SAME),
}


@comparison(
    "accuracy",
    option("--data", type=Path, default=common.DATA / "cifar10-subset.tar.xz", help="a tar of train/CLASS, test/CLASS"),
    option("--epochs", type=int, default=5),
    option("--seeds", type=int, default=3, help="how many runs of each arm"),
)
def compared(arguments: argparse.Namespace, folder: Path) -> Result:
    """The accuracy of each arm for seeds 0, 1, ...; a seed of all arms before the next one."""
    test = next(common.unpacked(arguments.data, folder).rglob("test"))
    data = test.rename(test.with_name("val")).parent  # no arm trains on these
    scores: dict[str, list[float]] = {name: [] for name in ARMS}
    for seed, (name, arm) in itertools.product(range(arguments.seeds), ARMS.items()):
        scores[name].append(arm(data, arguments.epochs, seed))
        print(f"{name}, seed {seed}: {scores[name][-1]:.4f}", file=sys.stderr, flush=True)
    rows = {
        arm: {"each": ", ".join(f"{value:.4f}" for value in values), "mean": round(statistics.mean(values), 4)}
        for arm, values in scores.items()
    }
    return common.result({"epochs": arguments.epochs, **rows}, arguments.seeds, "torch", "timm")
