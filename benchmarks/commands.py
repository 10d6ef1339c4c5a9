"""What our own commands take: time to their start, a checkpoint in training, fitting an ensemble, and conversion.

- `startup`: seconds to `--help` of each command, the least of three, and of `train_torch.py` on photographs, with local
  weights drawn here, from before the interpreter starts to where its first update would begin; `first` audits the
  images, `second` finds that done.
- `checkpoint`: the training thread's time in saving, as a share of the epoch, in one real run on the embedded digits;
  every second epoch waits until its checkpoint is on disk, as saving without a background thread would.
- `fit`: `python -m infer fit` on synthetic out-of-fold logits of a large competition. `peak_gib` counts mapped files as
  far as they are in memory; `anonymous_gib` does not.
- `convert`: one model of each family with random weights to ONNX and to Core ML, each in a process, imports included.

Results: docs/engineering/measurements.md, resume.md and speed_torch.md.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors.numpy

from benchmarks import common
from benchmarks.common import Result, comparison, option
from config import load
from data.rng import philox
from models.card import CARD_KEY, Card, Preprocessing
from models.weights import loading

COMMANDS = ("train_torch.py", "train_mlx.py", "-m infer", "-m convert", "-m data", "-m models", "-m training")
# `train_torch.py` up to there, which prints how long it took since the time that is the first word.
_FIRST_UPDATE = """
import os, sys, time
from backends.torch.session import Session
from training import cli
def first(*_):
    print(time.time() - float(sys.argv[1]), flush=True)
    os._exit(0)
Session.train_step = first
sys.exit(cli.main("torch", sys.argv[2:]))
"""
CONVERTED = (
    *("convnext_base", "convnextv2_tiny", "efficientnet_b4", "tf_efficientnetv2_s", "mobilenetv3_large_100"),
    *("resnet50d", "regnety_032", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "vit_base_patch16_224"),
    *("eva02_tiny_patch14_224", "maxvit_tiny_tf_224"),
)
_CONVERT = "import sys; from benchmarks import commands; commands.converted(*sys.argv[1:])"
_SHARPNESS = (3.6, 3.5, 3.4, 3.3, 3.0, 2.9, 2.8)  # of the members of `fit`, in turn


@comparison("startup", common.PHOTOGRAPHS, option("--model", default="convnext_base"))
def startup(arguments: argparse.Namespace, folder: Path) -> Result:
    """Seconds to `--help`, and to the first update of a start that does not know the images and of the next one."""
    helps = {
        name: round(min(common.command(*name.split(), "--help").seconds for _ in range(3)), 2) for name in COMMANDS
    }
    updates = {}
    files = common.photographs(arguments.data, 0, folder / "images" / "even")
    (odd := folder / "images" / "odd").mkdir()
    for file in files[1::2]:
        file.rename(odd / file.name)
    weights = folder / "model.safetensors"
    loading.write(weights, common.fresh(arguments.model, classes=1000)[2], {})
    words = ["--model", arguments.model, "--weights", str(weights), "--out", f"{folder}/runs"]
    words += ["--data.root", f"{folder}/images", "--train.batch_size", "8", "--name"]
    for name in ("first", "second"):
        start = ["-c", _FIRST_UPDATE, str(time.time())]
        done = common.command(*start, *words, name, TANDEM_CACHE=f"{folder}/cache")
        updates[name] = round(float(done.output.splitlines()[-1]), 1)
    return common.result({"help_s": helps, "update_s": updates}, 1, "torch", "timm")


@comparison(
    "checkpoint",
    option("--engine", choices=("torch", "mlx"), default="torch"),
    option("--model", default="convnext_atto"),
    option("--epochs", type=int, default=8),
)
def checkpoint(arguments: argparse.Namespace, folder: Path) -> Result:
    """Medians over the epochs but the first, of those that save in the background and of those that wait for it."""
    from data import demo
    from training.loop import checkpoint as checkpoints

    demo.write(folder / "digits")
    words = ["--data.root", f"{folder}/digits", "--out", f"{folder}/runs", "--weights", "none"]
    words += ["--model", arguments.model, "--data.image_size", "32", "--checkpoint.every_minutes", "0"]
    words += ["--train.epochs", str(arguments.epochs + 1), "--stopping.metric", "log_loss"]
    run, epochs = _trained_and_timed(arguments.engine, words)
    last = checkpoints.steps(run / "fold_0")[-1]
    figures: dict[str, Any] = {
        "checkpoint_mib": round(sum(file.stat().st_size for file in last.iterdir()) / 2**20, 1),
        "background": _saving(epochs[1::2]),
        "waiting": _saving(epochs[2::2]),
    }
    missed = "saving takes 2% of an epoch or more" if figures["background"]["share"] >= 0.02 else ""
    return common.result(figures, arguments.epochs // 2, "torch", "mlx", "numpy", missed=missed)


def _trained_and_timed(engine: str, words: list[str]) -> tuple[Path, list[tuple[float, float]]]:
    """The run's folder, and each epoch's seconds with those of saving; every second epoch waits for the disk."""
    from training.loop.trainer import Trainer
    from training.run import train_run

    save, saves = Trainer.save, list[tuple[float, float]]()  # when each ended, and its seconds

    def timed_save(self: Trainer, *rest: Any) -> None:
        start = time.perf_counter()
        save(self, *rest)
        if len(saves) % 2:  # those of epochs 1, 3, ..., as the first is that of the start
            self.saver.wait()
        saves.append((time.perf_counter(), time.perf_counter() - start))

    with mock.patch.object(Trainer, "save", timed_save), contextlib.redirect_stdout(sys.stderr):
        run = train_run.run_all(engine, load.parse(words, prog="benchmark"), lambda: False)
    return run, [(ended - before, seconds) for (before, _), (ended, seconds) in itertools.pairwise(saves)]


def _saving(epochs: list[tuple[float, float]]) -> dict[str, float]:
    return {
        "share": round(statistics.median(saving / seconds for seconds, saving in epochs), 5),
        "saving_ms": round(1000 * statistics.median(saving for _, saving in epochs), 1),
        "epoch_s": round(statistics.median(seconds for seconds, _ in epochs), 3),
    }


@comparison(
    "fit",
    option("--runs", type=int, default=7),
    option("--folds", type=int, default=5),
    option("--images", type=int, default=33_137),
    option("--classes", type=int, default=396),
    option("words", nargs="*", help="options of `infer fit`, after --, such as: -- --method greedy --metric macro_f1"),
)
def fit(arguments: argparse.Namespace, folder: Path) -> Result:
    """Write runs, then fit them in a process of its own."""
    words = ["--out", f"{folder}/ensemble.yaml", *arguments.words]
    done = common.command("-m", "infer", "fit", *map(str, _runs(folder, arguments)), *words)
    figures: dict[str, Any] = {"seconds": round(done.seconds, 1), "cpu_seconds": round(done.cpu_seconds, 1)}
    figures |= {"peak_gib": done.peak_gib, "anonymous_gib": done.anonymous_gib, "output": done.output.splitlines()}
    missed = "a minute or 4 GiB" if done.seconds >= 60 or done.peak_gib >= 4 else ""
    return common.result(figures, 1, "numpy", missed=missed)


def _runs(folder: Path, sizes: argparse.Namespace) -> list[Path]:
    """Run folders with logits of differing quality whose errors are partly common, as those of real members are."""
    rng = philox(0, "benchmark")
    share = rng.dirichlet(np.full(sizes.classes, 5.0))
    targets = rng.choice(sizes.classes, sizes.images, p=share)
    fold_of = rng.integers(sizes.folds, size=sizes.images)
    ids = np.array([f"train/{i:06}.jpg" for i in range(sizes.images)])
    shared = rng.standard_normal((sizes.images, sizes.classes), dtype=np.float32)
    shared[np.arange(sizes.images), targets] += 2
    card = Card("convnext_atto", tuple(f"class {c:03}" for c in range(sizes.classes)), Preprocessing(32))
    runs = []
    for number in range(sizes.runs):
        logits = rng.standard_normal(shared.shape, dtype=np.float32)
        logits[np.arange(sizes.images), targets] += _SHARPNESS[number % len(_SHARPNESS)]
        logits = 3 * (logits + shared)
        runs.append(folder / f"member_{number}")
        for fold in range(sizes.folds):
            rows, best = fold_of == fold, runs[-1] / f"fold_{fold}" / "best"
            best.mkdir(parents=True)
            weights = {"weight": np.zeros(1, np.float32)}
            safetensors.numpy.save_file(weights, best / "model.safetensors", {CARD_KEY: card.to_json()})
            np.savez(best.with_name("oof.npz"), ids=ids[rows], logits=logits[rows], targets=targets[rows])
    return runs


@comparison("convert", option("models", nargs="*", default=CONVERTED), option("--precision", default="fp32"))
def convert(arguments: argparse.Namespace, folder: Path) -> Result:
    """For each model and format seconds by the clock and of the CPU, GiB at the peak, MB of the files."""
    figures: dict[str, Any] = {}
    for model, target in itertools.product(arguments.models, ("onnx", "coreml")):
        done = common.command("-c", _CONVERT, model, target, arguments.precision, str(folder))
        row = f"{done.seconds:.0f} s, {done.cpu_seconds:.0f} s of CPU, {done.peak_gib} GiB"
        figures[f"{model}.{target}"] = f"{row}, {float(done.output.splitlines()[-1]):.0f} MB"
    return common.result(figures, 1, "torch", "onnx", "coremltools")


def converted(model: str, target: str, precision: str, folder: str) -> None:
    """Convert and print the MB of the artefact."""
    import convert as conversion
    from convert.graph import torch_network
    from convert.verification import verify

    _, card, weights = common.fresh(model, classes=100)
    out = Path(folder) / f"{model}{conversion.TARGETS[target].suffix}"
    conversion.load(target).write(torch_network.classifier(weights, card), card, out, precision)
    print(verify.size(out) / 1e6)
