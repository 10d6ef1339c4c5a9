"""Workers: processes that know a campaign's folder alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from config import load
from tests.e2e.commands import ROOT, wait_for
from tests.unit.test_stages import TWO, undrawn  # noqa: F401 - a fixture
from tests.unit.test_tune import TUNE
from training import __main__ as commands
from training import cli

pytestmark = pytest.mark.usefixtures("undrawn")


def campaign(text: str, root: Path, tmp_path: Path, *more: str) -> Path:
    """The folder that a command of the NumPy engine makes."""
    (tmp_path / "given.yaml").write_text(text)
    given = ["--config", str(tmp_path / "given.yaml"), "--data.root", str(root), "--out", str(tmp_path / "runs")]
    assert cli.main("numpy", [*given, "--name", "shared", *more]) == 0
    return tmp_path / "runs" / "shared"


def folds(folder: Path) -> list[str]:
    return sorted("/".join(path.parts[-3:-1]) for path in folder.glob("members/*/fold_*/result.yaml"))


EVERY = ["first/fold_0", "first/fold_1", "second/fold_0", "second/fold_1"]


def test_a_worker_trains_all_that_is_left_with_the_folders_settings(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = campaign(TWO, digits, tmp_path, "--mode", "train", "--member", "first", "--fold", "1")
    assert folds(folder) == ["first/fold_1"]
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(digits, elsewhere)
    assert cli.work_on(folder, "numpy", ["--data.root", str(elsewhere)]) == 0
    assert folds(folder) == EVERY
    assert load.read(folder / "members" / "second" / "config.yaml").seed == 5
    assert load.read_members(folder / "campaign.yaml")[0].settings.data.root == digits, "its own place stays its own"
    capsys.readouterr()
    assert cli.work_on(folder, "numpy", []) == 0
    assert "4 of 4 folds are done" in capsys.readouterr().out


def test_a_worker_of_a_search_searches_and_trains_nothing(digits: Path, tmp_path: Path) -> None:
    folder = campaign(TUNE, digits, tmp_path, "--mode", "tune", "--tune.trials", "1")
    file = folder / "campaign.yaml"
    file.write_text(file.read_text().replace("trials: 1", "trials: 3"))
    assert cli.work_on(folder, "numpy", []) == 0
    (table,) = folder.glob("tune/*/trials.csv")
    assert len(table.read_text().splitlines()) == 1 + 3
    assert not folds(folder)


def test_a_worker_of_full_with_tune_trains_with_what_was_found(digits: Path, tmp_path: Path) -> None:
    more = ("--mode", "full", "--tune", "--tune.trials", "1", "--train.epochs", "2")
    folder = campaign(TUNE, digits, tmp_path, *more)
    for kept in ("stages.yaml", "members"):
        path = folder / kept
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert cli.work_on(folder, "numpy", []) == 0
    (found,) = yaml.safe_load((folder / "stages.yaml").read_text())["tuned"]["values"].values()
    assert load.read(folder / "members" / "convnext_atto" / "config.yaml").optim.lr == found["optim.lr"]


@pytest.mark.parametrize(
    ("more", "code", "line"),
    [
        (
            [],
            1,
            "no campaign.yaml, so this is no campaign; give the folder that train_torch.py or train_mlx.py has made",
        ),
        (["--engine", "jax"], 2, "--engine: found 'jax'; there are torch, mlx"),
    ],
)
def test_what_is_no_campaign_and_no_engine_is_one_line(
    more: list[str], code: int, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        ended = commands.main(["worker", "--campaign", str(tmp_path), *more])
    except SystemExit as stopped:
        ended = int(stopped.code or 0)
    assert ended == code
    assert line in capsys.readouterr().err


def test_other_settings_of_the_training_are_refused(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = campaign(TWO, digits, tmp_path, "--mode", "audit")
    given = ["worker", "--campaign", str(folder), "--engine", "torch"]
    assert commands.main([*given, "--optim.lr", "1"]) == 2
    assert "was begun with other settings" in capsys.readouterr().err
    assert commands.main([*given, "--optim.rl", "1"]) == 2
    assert "optim.rl: no such setting (command line); did you mean optim.lr" in capsys.readouterr().err


ONE = """
model: test_efficientnet
weights: none
folds: {strategy: stratified, n_splits: 2, train: [0]}
data: {image_size: 32, audit: false, workers: 1}
train: {batch_size: 8, compile: "off", epochs: 1}
checkpoint: {every_steps: 1}
optim: {lr: 0.001}
"""


def test_a_fold_of_a_killed_worker_goes_on_in_one_of_the_other_engine(digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("mlx")
    folder = campaign(ONE, digits, tmp_path, "--mode", "audit")
    command = [sys.executable, "-m", "training", "worker", "--campaign", str(folder), "--engine"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    dead = subprocess.Popen([*command, "torch"], cwd=ROOT, env=env, text=True, **pipes)
    place = folder / "members" / "test_efficientnet" / "fold_0"
    wait_for(lambda: (place / "step_00000002").exists(), dead)
    os.kill(dead.pid, signal.SIGKILL)
    dead.communicate()
    done = subprocess.run([*command, "mlx"], cwd=ROOT, env=env, text=True, timeout=200, **pipes)
    assert done.returncode == 0, done.stderr
    begun = next(line for line in done.stdout.splitlines() if line.startswith("going on from "))
    assert f"{place}/step_0000000" in begun
    assert yaml.safe_load((place / "result.yaml").read_text())["epochs"] == 1
    assert f"{folder}: all that was asked for is done" in done.stdout
