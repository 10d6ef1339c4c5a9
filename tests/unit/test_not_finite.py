"""Numbers that are not finite: a training without one good epoch, a campaign with such a member, a prediction."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml

import infer
from config.errors import Diverged
from infer.__main__ import main as predict
from models import manifest
from models.card import CARD_KEY
from models.weights import loading
from tests.unit import members
from tests.unit.test_campaign import NEVER, settings
from training import cli
from training.run import train_run

# A rate whose first update leaves weights that overflow, while no update is called infinite often enough to stop.
OVERFLOWING = ("--optim.lr", "1e38", "--optim.clip_norm", "0", "--schedule.warmup_epochs", "0")
PATIENT = ("--watchdog.max_skipped", "1000", "--train.epochs", "1", "--folds.train", "[0]")


def test_a_run_without_a_finite_epoch_ends_as_diverged(digits: Path, tmp_path: Path) -> None:
    wanted = settings(digits, tmp_path, *OVERFLOWING, *PATIENT)
    for _ in range(2):  # resumed, it says the same
        with pytest.raises(Diverged, match=r"no validation score of 1 epoch is finite; lower optim\.lr"):
            train_run.run_all("numpy", wanted, NEVER)
    assert not list(tmp_path.glob("*/fold_0/result.yaml"))


def test_an_epoch_whose_updates_were_all_skipped_has_no_training_loss(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        train_run.run_all("numpy", settings(digits, tmp_path, *OVERFLOWING, *PATIENT, "--train.epochs", "2"), NEVER)
    with next(tmp_path.glob("*/fold_0/history.csv")).open(newline="") as stream:
        last = list(csv.DictReader(stream))[-1]
    assert int(last["skipped"]) > 0 and last["train_loss"] == "nan"


def test_a_campaign_leaves_such_a_member_out(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = {"optim": {"lr": 1e38, "clip_norm": 0}, "schedule": {"warmup_epochs": 0}, "watchdog": {"max_skipped": 1000}}
    file = tmp_path / "two.yaml"
    common = {"data": {"image_size": 16, "audit": False}, "weights": "none", "train": {"epochs": 1, "batch_size": 8}}
    listed = [{"name": "bad", "model": "convnext_atto", **bad}, {"name": "good", "model": "convnext_atto"}]
    file.write_text(yaml.safe_dump({**common, "members": listed}))
    words = ["--data.root", str(digits), "--out", str(tmp_path / "runs"), "--name", "camp"]
    assert cli.main("numpy", ["--config", str(file), "--mode", "train", *words]) == 3
    assert "left out: fold 0 of bad" in capsys.readouterr().out
    done = tmp_path / "runs" / "camp" / "members"
    assert [path.parts[-3] for path in done.glob("*/fold_0/result.yaml")] == ["good"]


def spoiled(path: Path) -> Path:
    """A checkpoint whose bias has one value that is no number."""
    members.checkpoint(path)
    arrays, _ = loading.read(path / "model.safetensors")
    arrays["head.bias"] = np.array([0, np.nan, 0], np.float32)
    loading.write(path / "model.safetensors", arrays, {CARD_KEY: members.card().to_json()})
    manifest.write(path)
    return path


def test_a_prediction_that_is_not_finite_is_an_error_that_names_the_member(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths, _ = members.photographs(tmp_path / "images")
    good, bad = members.checkpoint(tmp_path / "good", 1), spoiled(tmp_path / "bad")
    with infer.load(bad) as model, pytest.raises(Diverged, match=rf"{bad}: .*not finite for 7 of 7 images"):
        model.predict(paths)
    words = ["--images", str(tmp_path / "images"), "--out", str(tmp_path / "all.csv"), "--format", "wide"]
    assert predict(["--member", str(good), "--member", str(bad), *words]) == 1
    assert f"error: {bad}: its logits are not finite" in capsys.readouterr().err
    assert not (tmp_path / "all.csv").exists()
