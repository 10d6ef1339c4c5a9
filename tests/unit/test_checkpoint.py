"""Saving in the background, what survives a crash, which run and checkpoint is the newest, and who may work where."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from backends.contract import TrainState
from config import load
from config.errors import CheckpointError, ConfigError, Interrupted
from models.card import Card, Preprocessing
from tests.unit.test_campaign import NEVER, StopAfter, final, settings
from training.__main__ import main
from training.loop import checkpoint
from training.loop.saver import Saver
from training.run import run_dir, train_run

CARD = Card("convnext_atto", ("a", "b"), Preprocessing(16), {}, "numpy")


def state(calls: int) -> TrainState:
    return TrainState(
        {"w": np.full(4, calls, np.float32)}, optimizer={"exp_avg.w": np.zeros(4, np.float32)}, calls=calls
    )


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run.run_all("numpy", settings(digits, tmp_path_factory.mktemp("runs")), NEVER)


@pytest.fixture
def half(digits: Path, tmp_path: Path) -> Path:
    """A run that was stopped in its first fold, after the first of three epochs."""
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", settings(digits, tmp_path), StopAfter(14))
    return next(tmp_path.glob("0001_*"))


def test_saving_does_not_hold_up_training_and_a_second_save_waits() -> None:
    release, order = threading.Event(), []
    with Saver() as saver:
        saver.save(lambda: (release.wait(30), order.append("first"))[0])
        order.append("training goes on")
        threading.Timer(0.2, release.set).start()
        saver.save(lambda: order.append("second"))
    assert order == ["training goes on", "first", "second"]


def fail() -> None:
    raise CheckpointError("disk full")


@pytest.mark.parametrize("where", ["next save", "wait", "end"])
def test_an_error_of_the_writing_thread_reaches_the_training_thread(where: str) -> None:
    with pytest.raises(CheckpointError, match="disk full"), Saver() as saver:
        saver.save(fail)
        if where == "next save":
            saver.save(lambda: None)
        if where == "wait":
            saver.wait()


def test_what_is_saved_is_the_moment_of_the_call(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on while the files are written; a slow disk must not let later numbers into them."""
    plain = train_run.run_all("numpy", settings(digits, tmp_path / "a", "--checkpoint.every_steps", "1"), NEVER)
    quick = checkpoint.save

    def slow(*arguments: object) -> Path:
        time.sleep(0.02)
        return quick(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save", slow)
    slowed = train_run.run_all("numpy", settings(digits, tmp_path / "b", "--checkpoint.every_steps", "1"), NEVER)
    for fold in ("fold_0", "fold_1"):
        for one, other in zip(checkpoint.steps(plain / fold), checkpoint.steps(slowed / fold), strict=True):
            assert one.name == other.name
            (before, loop), (after, slow_loop) = checkpoint.load(one), checkpoint.load(other)
            assert loop["loop"]["batch"] == slow_loop["loop"]["batch"]
            for name, value in before.optimizer.items():
                np.testing.assert_array_equal(value, after.optimizer[name])


@pytest.mark.parametrize("name", ["best", "step_00000007"])
def test_a_crash_between_the_two_renames_loses_nothing(name: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, CARD, state(7), {})
    checkpoint.save_best(tmp_path, CARD, state(7).weights, {})
    (tmp_path / name).rename(tmp_path / f"{name}.previous")
    found = checkpoint.newest(tmp_path)
    assert found == tmp_path / "step_00000007"
    assert {p.name for p in tmp_path.iterdir()} == {"best", "step_00000007"}


def test_the_newest_checkpoint_is_that_of_most_updates_whatever_the_clock_said(tmp_path: Path) -> None:
    for calls in (5, 12, 9):
        saved = checkpoint.save(tmp_path, CARD, state(calls), {})
        os.utime(saved, (calls % 12, calls % 12))
    assert checkpoint.newest(tmp_path) == tmp_path / "step_00000012"


def test_the_newest_run_is_the_last_one_begun_whatever_the_clock_said(digits: Path, tmp_path: Path) -> None:
    again = settings(digits, tmp_path, "--folds.train", "[0]", "--train.epochs", "1", "--resume", "never")
    first, second = train_run.run_all("numpy", again, NEVER), train_run.run_all("numpy", again, NEVER)
    assert first != second
    for path in [second, *second.rglob("*")]:
        os.utime(path, (0, 0))
    auto = settings(digits, tmp_path, "--folds.train", "[0]", "--train.epochs", "1")
    assert train_run.run_all("numpy", auto, NEVER) == second


def test_a_damaged_checkpoint_is_named(half: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = checkpoint.steps(half / "fold_0")[-1]
    file = last / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    train_run.run_all("numpy", settings(digits, half.parent), NEVER)
    said = capsys.readouterr().out
    assert str(file) in said
    assert f"{last}.corrupt" in said


def test_a_config_edited_between_start_and_resume_is_refused(half: Path, digits: Path) -> None:
    file = half / "config.yaml"
    file.write_text(file.read_text().replace("label_smoothing: 0.1", "label_smoothing: 0.2"))
    with pytest.raises(ConfigError, match=r"fold_0 was trained with other settings \(loss\.label_smoothing: 0\.1, now"):
        train_run.run_all("numpy", load.parse(["--resume", str(half)], prog="test"), NEVER)
    agreed = load.parse(["--resume", str(half), "--resume_anyway", "true"], prog="test")
    assert train_run.run_all("numpy", agreed, NEVER) == half


def test_resuming_by_path_needs_no_other_setting(half: Path, finished: Path) -> None:
    assert train_run.run_all("numpy", load.parse(["--resume", str(half)], prog="test"), NEVER) == half
    one, other = final(finished), final(half)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_what_is_given_besides_and_differs_is_reported(half: Path) -> None:
    words = ["--resume", str(half), "--optim.weight_decay", "0.3", "--train.epochs", "4"]
    with pytest.raises(ConfigError, match=r"optim\.weight_decay: 0\.05, now 0\.3; train\.epochs: 3, now 4"):
        train_run.run_all("numpy", load.parse(words, prog="test"), NEVER)
    agreed = load.parse([*words, "--resume_anyway", "true"], prog="test")
    assert train_run.run_all("numpy", agreed, NEVER) == half
    assert load.read(half / "config.yaml").train.epochs == 4
    assert load.read(half / "config_1.yaml").train.epochs == 3
    assert (half / "fold_1" / "history.csv").read_text().count("\n") == 5


def test_a_folder_that_is_no_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.yaml.*give the folder of a run"):
        load.parse(["--resume", str(tmp_path)], prog="test")


def test_the_data_may_lie_elsewhere_on_the_other_machine(half: Path, digits: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(digits, moved)
    words = ["--resume", str(half), "--data.root", str(moved)]
    assert train_run.run_all("numpy", load.parse(words, prog="test"), NEVER) == half


def test_a_fold_that_is_being_trained_is_refused_and_the_others_are_not(digits: Path, tmp_path: Path) -> None:
    one = settings(digits, tmp_path, "--folds.train", "[0]")
    folder = train_run.run_all("numpy", one, NEVER)
    with run_dir.locked(folder / "fold_1"):
        with pytest.raises(CheckpointError, match=f"fold_1: process {os.getpid()} on .* is working in this folder"):
            train_run.run_all("numpy", settings(digits, tmp_path), NEVER)
        assert train_run.run_all("numpy", one, NEVER) == folder


def test_folds_that_are_trained_apart_make_the_same_run(digits: Path, tmp_path: Path, finished: Path) -> None:
    for fold in ("[1]", "[0]"):
        folder = train_run.run_all("numpy", settings(digits, tmp_path, "--folds.train", fold), NEVER)
    summary = yaml.safe_load((folder / "fold_results.yaml").read_text())
    assert [row["fold"] for row in summary["folds"]] == [0, 1]
    whole = yaml.safe_load((finished / "fold_results.yaml").read_text())
    assert summary["mean"] == whole["mean"]


def test_a_checkpoint_tells_what_it_is(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "info", str(finished)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * (3 + 1), "three steps and the best of each of two folds"
    last = next(line for line in lines if "fold_0/step_00000015" in line)
    for part in ("epoch 3", "step 15", "convnext_atto", "macro_f1 0.", "MiB", " old", "whole"):
        assert part in last, part


def test_a_damaged_checkpoint_fails_the_verification(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fold = half / "fold_0"
    assert main(["checkpoint", "verify", str(fold)]) == 0
    file = checkpoint.steps(fold)[0] / "state.json"
    file.write_text(file.read_text().replace("1", "2", 1))
    assert main(["checkpoint", "verify", str(fold)]) == 1
    said = capsys.readouterr().out
    assert f"{file}: its SHA-256 is not the one in manifest.json" in said
    assert main(["checkpoint", "verify", str(fold / "nothing")]) == 1
    assert "there is no such folder" in capsys.readouterr().err


def test_pruning_leaves_the_newest_and_the_best(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fold = half / "fold_0"
    newest = checkpoint.newest(fold)
    assert main(["checkpoint", "prune", str(half), "--keep", "1"]) == 0
    assert checkpoint.steps(fold) == [newest]
    assert (fold / "best").is_dir()
    with run_dir.locked(fold):
        assert main(["checkpoint", "prune", str(half)]) == 1
    assert "is working in this folder" in capsys.readouterr().err


def test_a_run_that_cannot_be_read_is_passed_over_and_named(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "0001_old"
    old.mkdir()
    (old / "config.yaml").write_text("no_such_key: 1\n")
    (old / "environment.json").write_text(json.dumps([{"engine": "numpy"}]))
    wanted = settings(digits, tmp_path, "--folds.train", "[0]", "--train.epochs", "1")
    assert train_run.run_all("numpy", wanted, NEVER).name.startswith("0002_")
    assert "0001_old is passed over" in capsys.readouterr().err


def test_two_runs_of_the_same_settings_have_the_same_hashes(digits: Path, tmp_path: Path) -> None:
    """No time, host or process is in what is hashed."""
    wanted = settings(digits, tmp_path, "--folds.train", "[0]", "--train.epochs", "2", "--resume", "never")
    runs = [train_run.run_all("numpy", wanted, NEVER) for _ in range(2)]
    assert runs[0] != runs[1]
    for name in ("best", *(path.name for path in checkpoint.steps(runs[0] / "fold_0"))):
        one, other = ((run / "fold_0" / name / "manifest.json").read_text() for run in runs)
        assert one == other
