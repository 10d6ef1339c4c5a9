"""Does it learn? One small network from scratch on a CIFAR-10 subset, with Tandem and with timm, in accuracy.

Network, image size, epochs, batch, optimizer, rate and warm-up are equal in all arms; what a recipe adds differs:

- `tandem`: this project's, through `training.run.train_run`, as a user runs it.
- `timm`: the recipe that timm's `train.py` is best known for from scratch (RandAugment, Mixup and CutMix, random
  erasing, label smoothing, EMA with warm-up, cosine), through timm's public API in the order of its training loop.
- `timm_same`: timm's API again with the nearest counterparts of the `tandem` arm's settings: what remains between
  these two is implementation, not recipe.

Every figure is the accuracy after the last epoch on test images that decided nothing.
Results: docs/engineering/accuracy.md.
Command: `python -m benchmarks.accuracy --data cifar10-subset.tar.xz --seeds 3`.
"""

from __future__ import annotations

import csv
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
from config import load
from training.run import train_run

DATA = common.DATA / "cifar10-subset.tar.xz"


@dataclass(frozen=True)
class Common:
    """What all arms share; `size` in pixels, the rate is AdamW's peak."""

    model: str = "test_resnet"
    size: int = 32
    epochs: int = 5
    batch_size: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup_epochs: int = 1
    min_lr_ratio: float = 0.01
    smoothing: float = 0.1


@dataclass(frozen=True)
class TimmRecipe:
    """The arguments of timm's `train.py` in which its recipes differ, under its names."""

    mixup: float = 0.0
    cutmix: float = 0.0
    aa: str | None = None
    color_jitter: float = 0.4
    reprob: float = 0.0
    scale: tuple[float, float] = (0.08, 1.0)
    model_ema_decay: float = 0.0
    clip_grad: float | None = None


# The from-scratch recipe that DeiT, Swin and ConvNeXt published on timm, as train.py's flags. Without mmax9 its
# RandAugment stops with Pillow 12, as a magnitude of 10 asks it to keep 0 bits.
TIMM = TimmRecipe(mixup=0.8, cutmix=1.0, aa="rand-m9-mstd0.5-mmax9-inc1", reprob=0.25, model_ema_decay=0.9998)
# A crop and a flip: of two choices the better on a hold-out of the training images (a few epochs overfit nothing).
TANDEM = ("--augment.level", "minimal", "--augment.ops", "{affine: false}", "--augment.min_scale", "0.5")
TIMM_SAME = TimmRecipe(scale=(0.5, 1.0), color_jitter=0.0, clip_grad=1.0)


def tandem(data: Path, common: Common, seed: int) -> float:
    """The test accuracy of this project's recipe."""
    with tempfile.TemporaryDirectory() as out:
        words = ["--data.root", str(data), "--folds.file", str(data / "folds.csv"), "--out", out, "--seed", str(seed)]
        words += ["--model", common.model, "--weights", "none", "--data.image_size", str(common.size)]
        words += ["--train.epochs", str(common.epochs), "--train.batch_size", str(common.batch_size)]
        words += ["--train.precision", "fp32", "--train.compile", "off", "--data.workers", "1"]
        words += ["--optim.lr", str(common.lr), "--optim.weight_decay", str(common.weight_decay)]
        words += ["--schedule.warmup_epochs", str(common.warmup_epochs)]
        words += ["--schedule.min_lr_ratio", str(common.min_lr_ratio), "--loss.label_smoothing", str(common.smoothing)]
        folder = train_run.run_all("torch", load.parse([*words, *TANDEM], prog="accuracy"), lambda: False)
        with (folder / "fold_0" / "history.csv").open(newline="") as stream:
            return float(list(csv.DictReader(stream))[-1]["accuracy"])


def through_timm(recipe: TimmRecipe, data: Path, common: Common, seed: int) -> float:
    """The test accuracy of a recipe of timm's."""
    random_seed(seed)
    model = timm.create_model(common.model, num_classes=10)
    train, test = loaders(recipe, data, common, model)
    mixing = recipe.mixup > 0 or recipe.cutmix > 0
    mix = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=common.smoothing, num_classes=10) if mixing else None
    optimizer = create_optimizer_v2(model, opt="adamw", lr=common.lr, weight_decay=common.weight_decay)
    warmup = {"warmup_epochs": common.warmup_epochs, "min_lr": common.lr * common.min_lr_ratio}
    ema, clip = recipe.model_ema_decay, recipe.clip_grad
    for trained in timm_epochs(model, train, optimizer, common.epochs, common.smoothing, mix, ema, clip, **warmup):
        score = accuracy(trained, test)
        print(f"  accuracy {score:.4f}", file=sys.stderr, flush=True)
    return score


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


def loaders(recipe: TimmRecipe, data: Path, common: Common, model: nn.Module) -> tuple[Any, Any]:
    """timm's loaders of the training and the test images."""
    shared, plain = timm_options(model, common.size, common.batch_size)
    train = create_loader(
        create_dataset("", root=str(data / "train")),
        is_training=True,
        scale=recipe.scale,
        color_jitter=recipe.color_jitter,
        auto_augment=recipe.aa,
        re_prob=recipe.reprob,
        re_mode="pixel",
        interpolation="random",
        **shared,
    )
    return train, create_loader(create_dataset("", root=str(data / "test")), **plain)


@torch.no_grad()
def accuracy(model: nn.Module, loader: Any) -> float:
    """The share of a loader's images whose largest logit is the right one."""
    model.eval()
    hits = [(model(images).argmax(1) == targets).float() for images, targets in loader]
    return float(torch.cat(hits).mean())


@contextmanager
def unpacked(source: Path) -> Iterator[Path]:
    """A copy of the data set: `train/CLASS/` and `test/CLASS/`, with both in train.csv, and test as fold 0."""
    with tempfile.TemporaryDirectory() as folder:
        if source.is_dir():
            shutil.copytree(source, folder, dirs_exist_ok=True)
        else:
            with tarfile.open(source) as archive:
                archive.extractall(folder, filter="data")
        root = next(path.parent for path in sorted(Path(folder).rglob("train")))
        paths = [path.relative_to(root) for part in ("train", "test") for path in sorted((root / part).rglob("*.jpg"))]
        rows = [(path.as_posix(), path.parts[1], 0 if path.parts[0] == "test" else -1) for path in paths]
        for name, columns in (("train.csv", ("ID", "target")), ("folds.csv", ("ID", "target", "fold"))):
            with (root / name).open("w", newline="") as stream:
                csv.writer(stream).writerows([columns, *(row[: len(columns)] for row in rows)])
        yield root


ARMS = {
    "tandem": tandem,
    "timm": lambda *rest: through_timm(TIMM, *rest),
    "timm_same": lambda *rest: through_timm(TIMM_SAME, *rest),
}


def measure(arms: Sequence[str], data: Path, common: Common, seeds: int) -> dict[str, list[float]]:
    """The accuracy of each arm for seeds 0, 1, ...; a seed of all arms before the next one."""
    accuracies: dict[str, list[float]] = {arm: [] for arm in arms}
    for seed in range(seeds):
        for arm in arms:
            cpu = time.process_time()
            accuracies[arm].append(ARMS[arm](data, common, seed))
            spent = time.process_time() - cpu
            print(f"{arm}, seed {seed}: {accuracies[arm][-1]:.4f} ({spent:.0f} s of CPU)", file=sys.stderr, flush=True)
    return accuracies


def main() -> None:
    """Run the arms and print what they reached."""
    parser = common.parser(__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="the .tar.xz, or a folder with train/ and test/")
    parser.add_argument("--epochs", type=int, default=Common.epochs)
    parser.add_argument("--seeds", type=int, default=3, help="how many runs of each arm")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    arguments = parser.parse_args()
    shared = Common(epochs=arguments.epochs)
    with unpacked(arguments.data) as data:
        accuracies = measure(arguments.arms, data, shared, arguments.seeds)
    rows = {
        arm: {"each": ", ".join(f"{value:.4f}" for value in values), "mean": round(statistics.mean(values), 4)}
        for arm, values in accuracies.items()
    }
    common.report(arguments, {"settings": asdict(shared), **rows}, arguments.seeds, "torch", "timm")


if __name__ == "__main__":
    main()
