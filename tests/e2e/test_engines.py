"""A run that one engine began goes on on the other, by the command that a user types."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import backends
from backends.contract import SessionConfig
from config import load
from config.errors import ConfigError, Interrupted
from models import registry
from models.weights import loading
from tests.e2e.commands import ROOT
from tests.unit.test_campaign import NEVER, StopAfter
from training.run import results, train_run

AFTER_TEN_STEPS = 11  # four steps and the end of the epoch ask, so this is the question after the tenth step


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same beginning for all: ConvNeXt is smooth, so that equal steps stay equal."""
    spec = registry.get("convnext_atto", num_classes=10, image_size=32)
    session = backends.load("torch").open(spec, None, SessionConfig(seed=1))
    path = tmp_path_factory.mktemp("start") / "model.safetensors"
    loading.write(path, session.state().weights, {})
    return path


def given(root: Path, out: Path, start: Path) -> list[str]:
    words = ["--data.root", str(root), "--out", str(out), "--model", "convnext_atto", "--weights", str(start)]
    words += ["--data.image_size", "32", "--train.batch_size", "16", "--train.epochs", "5", "--optim.lr", "1e-3"]
    words += ["--ema.decay", "0.9", "--mix.mixup", "0.4", "--train.compile", "off", "--optim.layer_decay", "0.8"]
    return [*words, "--data.workers", "2", "--augment.level", "minimal", "--data.audit", "false"]


@pytest.fixture(scope="module")
def straight(digits: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Twenty steps on each engine alone."""
    return {
        engine: train_run.run_all(
            engine, load.parse(given(digits, tmp_path_factory.mktemp(engine), start), prog="test"), NEVER
        )
        for engine in ("torch", "mlx")
    }


def losses(run: Path) -> list[list[float]]:
    """Training loss under Mixup and validation loss of the EMA weights, after each epoch."""
    with (run / "fold_0" / "history.csv").open(newline="") as stream:
        return [[float(row["train_loss"]), float(row["log_loss"])] for row in csv.DictReader(stream)]


@pytest.mark.parametrize(("first", "second"), [("torch", "mlx"), ("mlx", "torch")])
def test_ten_steps_here_and_ten_there_are_twenty_on_either(
    first: str, second: str, digits: Path, start: Path, straight: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(Interrupted) as stopped:
        wanted = load.parse(given(digits, tmp_path, start), prog="test")
        train_run.run_all(first, wanted, StopAfter(AFTER_TEN_STEPS))
    folder = stopped.value.folder
    assert len(losses(folder)) == 2, "stopped in the middle of the third epoch"
    command = [sys.executable, f"train_{second}.py", "--resume", str(folder)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "epoch 3, batch 2" in ran.stdout
    for engine in (first, second):
        np.testing.assert_allclose(losses(folder), losses(straight[engine]), rtol=1e-5)
    assert results.card(folder).trained_with == second


def test_what_changes_the_run_is_said_and_needs_consent(straight: dict[str, Path]) -> None:
    words = ["--resume", str(straight["torch"]), "--ema.decay", "0.99"]
    with pytest.raises(ConfigError, match=r"ema\.decay: 0\.9, now 0\.99.*add --resume_anyway true"):
        train_run.run_all("mlx", load.parse(words, prog="test"), NEVER)
