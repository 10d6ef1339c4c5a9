"""The loss as people set it: options that belong to another loss, class weights, and what a fold makes of them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from timm.loss import compute_class_weights

from backends.contract import LossSpec
from config import load
from config.errors import ConfigError
from config.sections.train import LOSS_OPTIONS, Loss
from training.policy import loss
from training.run import train_run

LABELS = np.repeat(np.arange(4), [40, 10, 1, 5])


def parse(*argv: str) -> Loss:
    return load.parse(["--data.root", "images", *argv], "train_torch.py").loss


def test_options_left_out_are_the_losss_defaults_and_others_are_not_passed() -> None:
    got = parse("--loss.name", "focal", "--loss.gamma", "3")
    assert loss.spec(got, LABELS, 4) == LossSpec("focal", {"gamma": 3.0, "alpha": 1.0})
    assert loss.spec(parse(), LABELS, 4) == LossSpec()


@pytest.mark.parametrize("name", list(LOSS_OPTIONS))
def test_any_loss_survives_writing_and_reading(name: str, tmp_path: Path) -> None:
    first = next(iter(LOSS_OPTIONS[name]), None)
    more = [f"--loss.{first}", "1"] if first else []
    got = load.parse(["--data.root", "x", "--loss.name", name, "--loss.class_weights", "[1, 2.5]", *more], "x")
    path = tmp_path / "config.yaml"
    path.write_text(load.to_yaml(got))
    assert load.read(path) == got


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--loss.gamma", "2"], "loss.gamma: found '2' (command line); expected null where loss.name is cross_entropy"),
        (
            ["--loss.name=focal", "--loss.t1=0.5"],
            "loss.t1: found '0.5' (command line); expected null where loss.name is",
        ),
        (["--loss.name=bi_tempered", "--loss.t2=0.9"], "expected a number from 1 to 5 or null"),
        (["--loss.name=asymmetric", "--loss.clip=1"], "expected a number >= 0 and < 1 or null"),
        (["--loss.class_weights_beta=0.9"], "expected null where loss.class_weights is not effective_number"),
        (["--loss.class_weights=balance"], "expected one of none, balanced, effective_number or a list of numbers > 0"),
        (["--loss.class_weights=[1, 0]"], "expected one of none, balanced, effective_number or a list of numbers > 0"),
    ],
)
def test_what_a_loss_does_not_use_is_refused(argv: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*argv)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_balanced_weights_are_scikit_learns() -> None:
    got = loss.class_weights(Loss(class_weights="balanced"), LABELS, 4)
    want = compute_class_weight("balanced", classes=np.arange(4), y=LABELS)
    np.testing.assert_allclose(got, want)


@pytest.mark.parametrize("beta", [None, 0.9])
def test_effective_number_weights_are_timms(beta: float | None) -> None:
    got = loss.class_weights(Loss(class_weights="effective_number", class_weights_beta=beta), LABELS, 4)
    counts = np.bincount(LABELS).tolist()
    _, want = compute_class_weights(counts, len(LABELS), "effective_num", beta=beta or 0.999)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["balanced", "effective_number"])
def test_a_class_that_a_fold_does_not_train_on_weighs_nothing(kind: str) -> None:
    got = loss.class_weights(Loss(class_weights=kind), LABELS, 5)  # type: ignore[arg-type]
    assert got[4] == 0
    assert torch.tensor(got).isfinite().all()
    assert got[:4] == loss.class_weights(Loss(class_weights=kind), LABELS, 4)  # type: ignore[arg-type]


# In a run


def run(root: Path, out: Path, *more: str) -> Path:
    words = ["--data.root", str(root), "--out", str(out), "--model", "convnext_atto", "--weights", "none"]
    words += ["--data.image_size", "16", "--train.epochs", "1", "--train.batch_size", "8", "--optim.lr", "0.01"]
    return train_run.run_all("numpy", load.parse([*words, "--data.workers", "1", *more], "x"), lambda: False)


def train_loss(folder: Path) -> float:
    with (folder / "fold_0" / "history.csv").open(newline="") as stream:
        return float(next(csv.DictReader(stream))["train_loss"])


def test_a_run_uses_the_weights(digits: Path, tmp_path: Path) -> None:
    """AdamW goes the same way for twice the loss, if nothing is clipped."""
    plain = run(digits, tmp_path / "a", "--optim.clip_norm=0")
    doubled = run(digits, tmp_path / "b", "--optim.clip_norm=0", f"--loss.class_weights={[2.0] * 10}")
    assert train_loss(doubled) == pytest.approx(2 * train_loss(plain), rel=1e-3)


def test_weights_that_are_not_one_a_class_are_refused_before_anything_is_written(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"found 3 numbers; the data set has 10 classes, in this order: 0, 1, 2, 3, 4, ..."
    ):
        run(digits, tmp_path / "out", "--loss.class_weights=[1, 2, 3]")
    assert not (tmp_path / "out").exists()


def test_a_loss_that_the_engine_lacks_is_refused(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="numpy engine has only cross_entropy"):
        run(digits, tmp_path, "--loss.name=focal")
