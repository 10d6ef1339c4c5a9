"""Every shipped recipe trains on both engines: its settings as they are, on a small network and a few small images."""

from __future__ import annotations

import csv
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from config import load
from config.members import Member
from models import registry
from training.loop import checkpoint
from training.run import train_run

# The smallest network of each family, and a size in pixels that it takes.
SMALL = {
    "convnext": ("test_convnext", 32),
    "efficientnet": ("test_efficientnet", 32),
    "resnet": ("test_resnet", 32),
    "swin": ("swin_tiny_patch4_window7_224", 32),
    "vit": ("test_vit", 32),
}
MINE = (
    "convnext_base_384_best",
    "documents",
    "efficientnet_b4_320_documents",
    "modern_finetune",
    "swin_base_384_5fold",
)
CASES = [(recipe, "") for recipe in MINE] + [
    ("seven_model_ensemble", name)
    for name in (
        "efficientnetv2_l",
        "convnext_large",
        "swin_large",
        "efficientnet_b7",
        "convnext_base",
        "resnet152d",
        "vit_base",
    )
]


@pytest.fixture(scope="module")
def few(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three digits of each of five classes."""
    root = tmp_path_factory.mktemp("few")
    with (digits / "train.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["target"] in "12345"]
    kept = [row for row in rows if [r for r in rows if r["target"] == row["target"]].index(row) < 3]
    (root / "train").mkdir()
    for row in kept:
        shutil.copy(digits / "train" / row["ID"], root / "train" / row["ID"])
    with (root / "train.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["ID", "target"])
        writer.writeheader()
        writer.writerows(kept)
    return root


def members(recipe: str, *more: str) -> dict[str, Member]:
    return {
        member.name: member
        for member in load.parse_command(["--config", recipe, "--data.root", "images", *more], prog="test").members
    }


def small(recipe: str, name: str, root: Path, out: Path) -> list[str]:
    """The command line of a member on a small network: one epoch of a few steps, and nothing else changed."""
    wanted = members(recipe)[name].settings
    model, size = SMALL[registry.get(wanted.model).family]
    words = ["--config", recipe, "--data.root", str(root), "--out", str(out), "--model", model, "--weights", "none"]
    words += ["--member", name] if name else []
    words += ["--data.image_size", str(size), "--data.workers", "1", "--train.compile", "off", "--train.epochs", "1"]
    words += ["--train.batch_size", "4", "--train.val_batch_size", "8", "--schedule.warmup_epochs", "0"]
    if wanted.folds.strategy == "stratified":
        words += ["--folds.n_splits", "3", "--folds.train", "[0]"]
    else:
        words += ["--folds.val_fraction", "0.35"]
    if wanted.train.micro_batch:
        words += ["--train.micro_batch", "2"]
    if wanted.augment.off_epochs:
        words += ["--augment.off_epochs", "0"]
    if wanted.sampling.oversample_to:
        words += ["--sampling.oversample_classes", "[1, 3, 4]", "--sampling.oversample_to", "4"]
    if wanted.mining.cap:
        words += ["--train.epochs", "2", "--mining.start_epoch", "1", "--mining.ramp_epochs", "1"]
    return words


@pytest.mark.parametrize("engine", ["torch", "mlx"])
@pytest.mark.parametrize(("recipe", "name"), CASES)
def test_a_recipe_trains_with_all_that_it_sets(engine: str, recipe: str, name: str, few: Path, tmp_path: Path) -> None:
    settings = load.parse(small(recipe, name, few, tmp_path), prog=f"train_{engine}.py")
    folder = train_run.run_all(engine, settings, lambda: False)
    fold = folder / "fold_0"
    with (fold / "history.csv").open(newline="") as stream:
        history = list(csv.DictReader(stream))
    assert len(history) == settings.train.epochs
    assert all(math.isfinite(float(row["train_loss"])) and float(row["skipped"]) == 0 for row in history)
    with np.load(fold / "oof.npz") as oof:
        assert oof["logits"].shape == (len(oof["ids"]), 5)
        assert np.isfinite(oof["logits"]).all()
    newest = checkpoint.newest(fold)
    assert newest is not None
    state, _ = checkpoint.load(newest)
    assert (state.ema is not None) == (settings.ema.decay > 0)
    powers = [value for key, value in state.weights.items() if key.endswith("global_pool.p")]
    assert len(powers) == (settings.global_pool == "gem")


def test_every_member_of_the_ensemble_is_tried() -> None:
    assert [name for recipe, name in CASES if recipe == "seven_model_ensemble"] == list(members("seven_model_ensemble"))


# What the owners of the systems that these replace wrote down (../shared/SYSTEMS.md, and the list).


def test_the_swin_recipe_is_the_five_fold_systems() -> None:
    got = members("swin_base_384_5fold")[""].settings
    assert registry.get(got.model).name == "swin_base_patch4_window12_384.ms_in22k_ft_in1k"
    assert (got.folds.strategy, got.folds.n_splits, got.train.batch_size, got.train.epochs) == ("stratified", 5, 32, 15)
    assert (got.optim.name, got.optim.lr, got.schedule.name) == ("adamw", 1e-4, "cosine")
    assert got.mix.mixup > 0 < got.mining.cap
    assert len(got.tta.views) == 3


def test_the_convnext_recipe_is_the_search_result() -> None:
    got = members("convnext_base_384_best")[""].settings
    assert registry.get(got.model, image_size=got.data.image_size).preprocessing.size == 384
    assert (got.optim.lr, got.train.batch_size, got.train.epochs) == (1.28e-4, 16, 150)
    assert (round(got.optim.weight_decay, 4), round(got.drop.rate, 3), got.drop.path) == (0.0132, 0.103, 0.1)
    assert (got.schedule.warmup_epochs, got.loss.label_smoothing, got.ema.decay) == (10, 0.1, 0.9999)
    assert (got.mix.mixup, got.mix.prob, got.augment.level, got.augment.ramp) == (0.8, 0.5, "hard", "up")


def test_the_documents_recipe_is_the_hold_out_systems() -> None:
    got = members("efficientnet_b4_320_documents")[""].settings
    assert registry.get(got.model).name == "efficientnet_b4.ra2_in1k"
    assert (got.optim.lr, got.optim.weight_decay, got.schedule.name) == (1e-4, 1e-5, "cosine")
    assert (got.train.batch_size, got.train.val_batch_size, got.data.image_size) == (20, 50, 320)
    assert (got.data.mean, got.data.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (got.folds.strategy, got.folds.val_fraction, got.augment.level) == ("holdout", 0.15, "minimal")
    assert (got.stopping.patience, got.stopping.min_delta) == (20, 1e-6)
    assert (got.sampling.oversample_classes, got.sampling.oversample_to) == (("1", "13", "14"), 78)


def test_the_ensemble_recipe_has_the_seven_models() -> None:
    got = list(members("seven_model_ensemble").values())
    assert [registry.get(member.settings.model).name for member in got] == [
        "tf_efficientnetv2_l.in21k_ft_in1k",
        "convnext_large.fb_in22k_ft_in1k_384",
        "swin_large_patch4_window12_384.ms_in22k_ft_in1k",
        "tf_efficientnet_b7.ns_jft_in1k",
        "convnext_base.fb_in22k_ft_in1k",
        "resnet152d.ra2_in1k",
        "vit_base_patch16_224.augreg_in21k_ft_in1k",
    ]
    assert [member.weight for member in got] == [20, 20, 15, 15, 10, 10, 10]
    assert [member.settings.data.image_size for member in got] == [480, 384, 384, 600, 224, 224, 224]
    assert [(m.settings.optim.lr, m.settings.train.batch_size) for m in got][:3] == [
        (0.01, 12),
        (0.008, 16),
        (0.012, 8),
    ]
    assert {member.settings.loss.name for member in got} == {"cross_entropy", "focal"}
    for member in got:
        schedule, rate = member.settings.schedule, member.settings.optim.lr or 0.0
        assert (schedule.name, schedule.t_0, schedule.t_mult) == ("cosine_restarts", 10, 2)
        assert schedule.min_lr_ratio * rate == pytest.approx(1e-6, rel=1e-3)
        assert (member.settings.stopping.metric, len(member.settings.tta.views)) == ("log_loss", 5)
