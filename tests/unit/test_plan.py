"""`--dry_run`: it tells what the training then does, writes nothing, and refuses what the training would refuse."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from training import cli
from training.report import summary

SMALL = ("--weights", "none", "--data.image_size", "16", "--data.workers", "1", "--train.batch_size", "8")
RUN = (*SMALL, "--model", "convnext_atto", "--train.epochs", "3", "--optim.lr", "0.05", "--data.audit", "false")


@pytest.fixture
def train(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`train_numpy.py` without plots and pages."""
    for part in (summary.plots, summary.report):
        monkeypatch.setattr(part, "write", lambda *_: None)

    def run(*more: str) -> int:
        return cli.main("numpy", ["--data.root", str(digits), "--out", str(tmp_path / "runs"), *RUN, *more])

    return run


def line(text: str, name: str) -> str:
    (found,) = re.findall(rf"^{name} +(.+)$", text, flags=re.MULTILINE)
    return found


def test_a_dry_run_tells_folds_and_updates_of_the_training_and_writes_nothing(train, tmp_path, capsys) -> None:
    folds = ("--folds.strategy", "stratified", "--folds.n_splits", "2")
    assert train(*folds, "--dry_run") == 0
    text = capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    assert line(text, "folds").startswith("2 (0, 1) of 40 training and 40 validation images")
    assert line(text, "updates").startswith("30 of 8 images")  # 2 folds, 3 epochs, 5 updates
    written = re.search(r"writes +(\S+), a new folder:", text)[1]

    assert train(*folds) == 0
    assert Path(written, "fold_1", "best").is_dir()
    capsys.readouterr()
    assert train(*folds, "--dry_run") == 0
    assert "finished already" in capsys.readouterr().out


def test_only_what_is_left_of_a_run_is_counted(train, tmp_path, capsys) -> None:
    folds = ("--folds.strategy", "stratified", "--folds.n_splits", "4")
    assert train(*folds, "--fold", "0", "--name", "mine") == 0
    before = sorted(path for path in (tmp_path / "runs").rglob("*") if path.is_file())
    capsys.readouterr()
    assert train(*folds, "--name", "mine", "--dry_run") == 0
    text = capsys.readouterr().out
    assert line(text, "folds").startswith("3 (1, 2, 3)") and line(text, "folds").endswith("1 finished")
    assert ", resumed: " in line(text, "writes")
    assert sorted(path for path in (tmp_path / "runs").rglob("*") if path.is_file()) == before


def test_a_dry_run_that_diverges_names_the_run(train, tmp_path, capsys) -> None:
    words = ("--optim.lr", "1e38", "--optim.clip_norm", "0", "--schedule.warmup_epochs", "0", "--train.epochs", "1")
    assert train(*words, "--name", "mine", "--dry_run") == 1
    assert f"error: {tmp_path}/runs/mine/fold_0: no validation score" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_smaller_images_in_the_first_epochs_are_counted_by_their_own_batches(train, capsys) -> None:
    stages = ("--data.image_size", "32", "--progressive.sizes", "[16]", "--progressive.epochs", "[2]")
    assert train(*stages, "--model", "resnet10t", "--dry_run") == 0
    # 64 images: two epochs of two updates with 32 images, one of eight with 8.
    assert line(capsys.readouterr().out, "updates").startswith("12 of 8 images")


def test_a_campaign_is_planned_member_by_member_and_summed(digits, tmp_path, capsys) -> None:
    (tmp_path / "two.yaml").write_text(
        "folds: {strategy: stratified, n_splits: 2}\n"
        "members:\n"
        "  - {name: first, model: convnext_atto}\n"
        "  - {name: second, model: resnet18, train: {epochs: 1}}\n"
    )
    words = ["--config", str(tmp_path / "two.yaml"), "--data.root", str(digits), "--out", str(tmp_path / "runs")]
    assert cli.main("numpy", [*words, *SMALL, "--data.audit", "false", "--mode", "full", "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert "no test images" in text
    assert [line(text, name).split()[:2] for name in ("first", "second")] == [["2", "200"], ["2", "10"]]
    assert "in all" in line(text, "time")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--mode", "predict"), "--mode predict trains nothing"),
        (("--folds.train", "[3]"), "folds.train"),
        (("--resume", "nowhere"), "nowhere"),
    ],
)
def test_a_dry_run_refuses_what_the_training_would(train, capsys, words, said) -> None:
    assert train(*words, "--dry_run") == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("words", [("--dry_run",), (), ("--mode", "train", "--dry_run")])
def test_a_folder_that_cannot_be_written_is_refused_before_the_data_is_read(
    train, tmp_path, monkeypatch, capsys, words
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert train(*words, "--out", str(file / "below")) == 2
    said = capsys.readouterr()
    assert f"out: {file / 'below'} cannot be a folder, as {file} is a file" in said.err and "data: " not in said.out
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and access(path, mode))  # root may write
    assert train(*words, "--out", str(tmp_path / "new")) == 2
    assert f"out: {tmp_path} is not writable; change its permissions" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
