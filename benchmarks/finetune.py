"""Fine-tuning from real weights on little data: Tandem's defaults, timm's train.py, a linear probe.

Each seed draws a training and a test set anew. All arms get the same images, network (`tf_efficientnet_lite0` with its
ImageNet weights, from the extra `weights`), image size and number of epochs, and predict the test images, which
decide nothing:

- `tandem`: the command line without any other setting, then `infer fit` and its ensemble.
- `random_batch`, `probe_fixed`: the same with `--optim.head_init` and `--optim.batch_norm` as the name says; the
  defaults come to one of them.
- `probe_fixed_1e-3`: the last one at a higher rate.
- `timm`: the order of timm's train.py through its public functions, with the flags of its author's fine-tuning runs
  (model cards of vit_large_patch14_clip_336 and eva02_large on iNaturalist 2021), its best epoch by a hold-out.
- `probe`: scikit-learn's logistic regression on the standardised features, its C by a hold-out, fitted again on all.

Command: `python -m benchmarks finetune`. Results: docs/engineering/accuracy.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.utils import random_seed
from torch import nn

import infer
from benchmarks import common
from benchmarks.accuracy import accuracy, timm_epochs, timm_options
from benchmarks.common import Result, comparison, option
from config import load
from models import registry
from models.weights import loading
from training.run import train_run

MODEL = "tf_efficientnet_lite0"
_HOLD_OUT = 0.2


@dataclass(frozen=True)
class Task:
    """A drawn data set: `root/train/CLASS/*.jpg` and `root/test/CLASS/*.jpg`."""

    root: Path
    size: int
    epochs: int
    seed: int
    batch_size: int

    def files(self, split: str) -> tuple[list[Path], NDArray[np.int64]]:
        """The images of a split, and their classes by the order of the names."""
        files = sorted((self.root / split).rglob("*.jpg"))
        return files, np.array([self.classes.index(file.parent.name) for file in files])

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in order."""
        return sorted(folder.name for folder in (self.root / "train").iterdir())


def cifar(source: Path, count: int, tests: int, seed: int, root: Path, classes: str = "*") -> None:
    """`count` training images of each class, drawn anew, and the first `tests` test images of each."""
    for name in sorted(path.name for path in (source / "train").iterdir()):
        if classes == "*" or name in classes.split():
            files = sorted((source / "train" / name).iterdir())
            drawn = np.random.default_rng(seed).permutation(len(files))[:count]
            _copy([files[i] for i in drawn], root / "train" / name)
            _copy(sorted((source / "test" / name).iterdir())[:tests], root / "test" / name)


def photographs(source: Path, _count: int, _tests: int, seed: int, root: Path, least: Mapping[str, int]) -> None:
    """Groups by their WordNet numbers, from `least` to the next one's, under 300 photographs; three of five drawn for
    training."""
    files = sorted(source.glob("*.JPEG"))
    for (name, low), high in zip(least.items(), [*list(least.values())[1:], _ARTEFACTS_END], strict=True):
        group = [file for file in files if low <= int(file.name[1:9]) < high]
        drawn = np.random.default_rng(seed).permutation(len(group))
        cut = round(0.6 * len(group))
        _copy([group[i] for i in drawn[:cut]], root / "train" / name)
        _copy([group[i] for i in drawn[cut:]], root / "test" / name)


def _copy(files: list[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, folder / f"{file.stem}.jpg")


def tandem(task: Task, more: Sequence[str]) -> NDArray[np.float64]:
    """Train with the defaults and `more`, fit the ensemble on the out-of-fold logits, predict the test images."""
    with tempfile.TemporaryDirectory() as out:
        words = ["--data.root", str(task.root / "train"), "--out", out, "--seed", str(task.seed), "--model", MODEL]
        words += ["--weights", "pip", "--data.image_size", str(task.size), "--train.epochs", str(task.epochs)]
        run = train_run.run_all("torch", load.parse([*words, *more], prog="finetune"), lambda: False)
        infer.main(["fit", str(run), "--out", f"{out}/ensemble.yaml"])
        with infer.load(f"{out}/ensemble.yaml") as runner:
            return np.asarray(runner.predict(task.files("test")[0]).probabilities, np.float64)


def pretrained(classes: int) -> nn.Module:
    """timm's network with the real weights, its classifier drawn anew (none for no classes)."""
    model = timm.create_model(MODEL, num_classes=classes)
    resolved = loading.resolve(registry.get(MODEL), "pip")
    trunk = {n: torch.from_numpy(w) for n, w in resolved.weights.items() if not n.startswith("classifier.")}
    model.load_state_dict(trunk, strict=False)
    return model


def through_timm(task: Task) -> NDArray[np.float64]:
    """train.py --pretrained --opt adamw --opt-eps 1e-6 --weight-decay 0.01 --layer-decay 0.8 --clip-grad 1
    --warmup-lr 0 --sched-on-updates, its other flags at their defaults; the rate is Tandem's for this network."""
    random_seed(task.seed)
    model = pretrained(len(task.classes))
    train, valid, test = _loaders(task, model)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-4, weight_decay=0.01, eps=1e-6, layer_decay=0.8)
    best, probabilities = -1.0, np.zeros((0, 0))
    warmup = {"warmup_epochs": 1, "warmup_lr": 0, "min_lr": 0}
    for trained in timm_epochs(model, train, optimizer, task.epochs, 0.1, clip=1.0, **warmup):
        top1 = accuracy(trained, valid)
        if top1 > best:
            best, probabilities = top1, _probabilities(trained, test)
    return probabilities


def _loaders(task: Task, model: nn.Module) -> tuple[Any, Any, Any]:
    """timm's loaders of four fifths of the training images, of the hold-out, and of the test images."""
    shared, plain = timm_options(model, task.size, task.batch_size)
    files, labels = task.files("train")
    for split, rows in zip(("train", "valid"), _split(labels, task.seed), strict=True):
        for i in rows:
            folder = task.root / "timm" / split / task.classes[labels[i]]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(files[i], folder / files[i].name)
    train, valid, test = (
        create_dataset("", root=str(task.root / name)) for name in ("timm/train", "timm/valid", "test")
    )
    augmented = {"is_training": True, "color_jitter": 0.4, "interpolation": "random"}
    return create_loader(train, **augmented, **shared), create_loader(valid, **plain), create_loader(test, **plain)


def _split(labels: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    split = StratifiedShuffleSplit(1, test_size=_HOLD_OUT, random_state=seed)
    train, held = next(split.split(labels, labels))
    return train, held


@torch.no_grad()
def _probabilities(model: nn.Module, loader: Any) -> NDArray[np.float64]:
    """float64 `[N, C]` of a loader's images, in order."""
    model.eval()
    return torch.cat([model(images).double().softmax(1) for images, _ in loader]).numpy()


@torch.no_grad()
def probe(task: Task) -> NDArray[np.float64]:
    """A logistic regression on the pooled features of timm's evaluation images."""
    model = pretrained(0).eval()
    _, plain = timm_options(model, task.size, task.batch_size)
    features = []
    for split in ("train", "test"):
        loader = create_loader(create_dataset("", root=str(task.root / split)), **plain)
        features.append(torch.cat([model(images) for images, _ in loader]).double().numpy())
    labels = task.files("train")[1]
    train, held = _split(labels, task.seed)
    scaler = StandardScaler().fit(features[0])
    inputs, tests = map(scaler.transform, features)

    def fitted(strength: float, rows: NDArray[np.int64]) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=1000).fit(inputs[rows], labels[rows])

    def judged(strength: float) -> float:
        return float(log_loss(labels[held], fitted(strength, train).predict_proba(inputs[held])))

    best = min(np.logspace(-5, 1, 13).tolist(), key=judged)
    return np.asarray(fitted(best, np.arange(len(labels))).predict_proba(tests))


_TANDEM = {
    "tandem": "",
    "random_batch": "--optim.head_init random --optim.batch_norm batch",
    "probe_fixed": "--optim.head_init probe --optim.batch_norm fixed",
    "probe_fixed_1e-3": "--optim.head_init probe --optim.batch_norm fixed --optim.lr 1e-3",
}
ARMS: dict[str, Callable[[Task], NDArray[np.float64]]] = {
    "probe": probe,
    **{name: partial(tandem, more=words.split()) for name, words in _TANDEM.items()},
    "timm": through_timm,
}
_CIFAR, _PHOTOS = "cifar10-subset.tar.xz", "photos.tar"
_ARTEFACTS_END = 4_000_000
SETS: dict[str, tuple[Callable[..., None], str]] = {
    "cifar": (cifar, _CIFAR),
    "cats_dogs": (partial(cifar, classes="cat dog"), _CIFAR),
    "vehicles": (partial(cifar, classes="airplane automobile ship truck"), _CIFAR),
    "animals": (partial(cifar, classes="bird deer frog horse"), _CIFAR),
    "photographs": (partial(photographs, least={"animal": 0, "artefact": 2_500_000}), _PHOTOS),
    "three_groups": (
        partial(photographs, least={"bird_fish_reptile": 0, "mammal_insect": 1_800_000, "artefact": 2_500_000}),
        _PHOTOS,
    ),
}


@comparison(
    "finetune",
    option("--data", type=Path, default=common.DATA, help="the folder with both archives"),
    option("--sets", nargs="+", choices=list(SETS), default=["cifar", "photographs"]),
    option("--arms", nargs="+", choices=list(ARMS), default=["probe", "tandem", "timm"]),
    option("--images", type=int, default=40, help="training images of a class (cifar)"),
    option("--tests", type=int, default=50, help="test images of a class (cifar)"),
    option("--size", type=int, nargs="+", default=[64, 128], help="pixels, one for each set"),
    option("--epochs", type=int, default=20),
    option("--seeds", type=int, default=3),
)
def compared(arguments: argparse.Namespace, folder: Path) -> Result:
    """Test accuracy and log loss of each arm."""
    torch.set_num_threads(1)
    measured: dict[str, list[tuple[float, float]]] = {}
    for name, size in zip(arguments.sets, arguments.size, strict=True):
        draw, archive = SETS[name]
        unpacked = common.unpacked(arguments.data / archive, folder / archive)
        source = next(path for path in unpacked.iterdir() if path.is_dir())
        for seed in range(arguments.seeds):
            root = folder / name / f"drawn_{seed}"
            draw(source, arguments.images, arguments.tests, seed, root)
            task = Task(root, size, arguments.epochs, seed, 64 if size <= 64 else 16)
            for arm in arguments.arms:
                measured.setdefault(f"{name}.{arm}", []).append(scored(arm, task))
    scores = {
        key: {
            "accuracy, log loss": [round(float(value), 4) for value in np.mean(rows, axis=0)],
            "each": "; ".join(f"{top1:.4f}, {loss:.4f}" for top1, loss in rows),
        }
        for key, rows in measured.items()
    }
    return common.result(scores, arguments.seeds, "torch", "timm", "scikit-learn")


def scored(arm: str, task: Task) -> tuple[float, float]:
    """Test accuracy and log loss of an arm, whose output is discarded."""
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        probabilities = ARMS[arm](task)
    truth = task.files("test")[1]
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    accuracy = float((probabilities.argmax(1) == truth).mean())
    loss = float(log_loss(truth, probabilities, labels=range(len(task.classes))))
    spent = time.process_time() - start
    name = f"{task.root.parent.name}, seed {task.seed}, {arm}"
    print(f"{name}: accuracy {accuracy:.4f}, log loss {loss:.4f} ({spent:.0f} s of CPU)", file=sys.stderr, flush=True)
    return accuracy, loss
