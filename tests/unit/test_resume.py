"""A finished run or campaign resumed with other settings: what trains on, what is refused, what stays as it was."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from config import load
from config.errors import ConfigError, Interrupted
from models import manifest
from tests.unit.test_campaign import NEVER, StopAfter, final, settings
from training import cli
from training.loop import checkpoint
from training.run import train_run

CONSTANT = ("--folds.train", "[0]", "--schedule.name", "constant", "--schedule.warmup_epochs", "0")


def again(folder: Path, *more: str) -> Path:
    """`--resume FOLDER` with other settings, by consent."""
    words = ["--resume", str(folder), *more, *(["--resume_anyway", "true"] if more else [])]
    return train_run.run_all("numpy", load.parse(words, prog="test"), NEVER)


def epochs(fold: Path) -> list[int]:
    with (fold / "history.csv").open(newline="") as stream:
        return [int(row["epoch"]) for row in csv.DictReader(stream)]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}


@pytest.fixture
def short(digits: Path, tmp_path: Path) -> Path:
    """A finished run of two epochs at a constant rate."""
    return train_run.run_all("numpy", settings(digits, tmp_path, *CONSTANT, "--train.epochs", "2"), NEVER)


def test_more_epochs_train_on_as_if_they_had_been_asked_for_at_once(
    short: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again(short, "--train.epochs", "4") == short
    assert "4 epochs in place of 2; the learning rate follows the constant schedule" in capsys.readouterr().out
    assert epochs(short / "fold_0") == [1, 2, 3, 4]
    whole = settings(digits, tmp_path / "whole", *CONSTANT, "--train.epochs", "4")
    one, other = final(train_run.run_all("numpy", whole, NEVER)), final(short)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)
    assert load.read(short / "config.yaml").train.epochs == 4
    assert load.read(short / "config_1.yaml").train.epochs == 2
    assert yaml.safe_load((short / "fold_results.yaml").read_text())["folds"][0]["epochs"] == 4
    assert again(short) == short, "and needs no consent afterwards"


def test_a_cosine_schedule_continues_as_that_of_all_epochs(digits: Path, tmp_path: Path) -> None:
    cosine = ("--folds.train", "[0]", "--train.epochs")
    folder = train_run.run_all("numpy", settings(digits, tmp_path / "a", *cosine, "2"), NEVER)
    again(folder, "--train.epochs", "4")
    whole = train_run.run_all("numpy", settings(digits, tmp_path / "b", *cosine, "4"), NEVER)
    rates = [
        [row["lr"] for row in csv.DictReader((path / "fold_0" / "history.csv").open(newline=""))]
        for path in (folder, whole)
    ]
    assert rates[0][2:] == rates[1][2:]
    assert float(rates[0][1]) < float(rates[0][2])


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--train.epochs", "1"), r"fold_0: has trained 2 epochs, more than train\.epochs 1"),
        (("--optim.weight_decay", "0.3"), r"is finished, .*raise train\.epochs above 2.*optim\.weight_decay: 0\.05"),
    ],
)
def test_what_would_train_nothing_is_refused_and_changes_no_file(
    short: Path, more: tuple[str, ...], reason: str
) -> None:
    before = files(short)
    with pytest.raises(ConfigError, match=reason):
        again(short, *more)
    assert files(short) == before
    assert again(short) == short


def test_a_run_that_stopped_early_trains_on_with_more_patience_alone(digits: Path, tmp_path: Path) -> None:
    patient = ("--stopping.patience", "1", "--stopping.min_delta", "1.0", "--checkpoint.every_epochs", "3")
    folder = train_run.run_all("numpy", settings(digits, tmp_path, *CONSTANT, *patient, "--train.epochs", "6"), NEVER)
    assert epochs(folder / "fold_0") == [1, 2]
    before = files(folder)
    with pytest.raises(ConfigError, match=r"stopped early after 2 epochs; raise stopping\.patience"):
        again(folder, "--train.epochs", "8")
    assert files(folder) == before
    again(folder, "--stopping.patience", "3")
    assert epochs(folder / "fold_0") == [1, 2, 3, 4]


def test_an_extension_that_was_stopped_resumes_by_its_folder_alone(short: Path) -> None:
    longer = ["--resume", str(short), "--train.epochs", "4", "--resume_anyway", "true"]
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", load.parse(longer, prog="test"), StopAfter(1))
    assert not (short / "fold_results.yaml").exists()
    again(short)
    assert epochs(short / "fold_0") == [1, 2, 3, 4]


def test_an_average_that_is_the_best_is_replaced_by_a_better_epoch_alone(short: Path) -> None:
    best = short / "fold_0" / "best"
    state = checkpoint.read_state(best)
    state |= {"averaged": "swa", "scores": {**state["scores"], "macro_f1": 0.9999}}
    (best / "state.json").write_text(json.dumps(state))
    manifest.write(best)
    again(short, "--train.epochs", "4")
    assert checkpoint.read_state(best)["averaged"] == "swa"
    last = checkpoint.newest(short / "fold_0")
    assert last is not None
    assert checkpoint.read_state(last)["loop"]["stopping"]["best"] == 0.9999


@pytest.fixture
def members(digits: Path, tmp_path: Path) -> Callable[..., int]:
    file = tmp_path / "two.yaml"
    common = {"data": {"image_size": 16, "audit": False}, "weights": "none", "train": {"epochs": 1, "batch_size": 8}}
    listed = [{"name": "a", "model": "convnext_atto"}, {"name": "b", "model": "resnet18", "seed": 5}]
    file.write_text(yaml.safe_dump({**common, "members": listed}))
    words = ["--data.root", str(digits), "--out", str(tmp_path / "runs"), "--name", "camp"]
    assert cli.main("numpy", ["--config", str(file), "--mode", "train", *words]) == 0
    resumed = ["--resume", str(tmp_path / "runs" / "camp")]
    return lambda *more: cli.main("numpy", [*resumed, *more])


def test_a_finished_campaign_trains_on_or_stays_as_it_is(
    members: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "camp"
    before = files(folder)
    consent = ("--resume_anyway", "true")
    for mode, more in (("train", ("--optim.weight_decay", "0.3")), ("fit", ("--train.epochs", "2"))):
        assert members("--mode", mode, *more, *consent) == 2
        assert "nothing" in capsys.readouterr().err
        assert files(folder) == before
    assert members("--mode", "train", "--train.epochs", "2", *consent) == 0
    for name in ("a", "b"):
        assert epochs(folder / "members" / name / "fold_0") == [1, 2]
        assert load.read(folder / "members" / name / "config.yaml").train.epochs == 2
    assert load.read_members(folder / "campaign.yaml")[0].settings.train.epochs == 2
    assert members("--mode", "train") == 0
    assert members("--mode", "train", "--train.epochs", "1", *consent) == 2
    assert "more than train.epochs 1" in capsys.readouterr().err
