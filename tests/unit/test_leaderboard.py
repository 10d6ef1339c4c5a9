"""The leaderboard ranks runs by what they scored and says in which settings they differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from config import load
from training.__main__ import main
from training.campaign.leaderboard import Entry, ranked, read


def made(path: Path, f1: list[float], *settings: str, split: str = "ID,target,fold\n") -> Path:
    for k, score in enumerate(f1):
        (path / f"fold_{k}").mkdir(parents=True)
        row = {"fold": k, "macro_f1": score, "accuracy": score, "log_loss": 1 - score, "epochs": 5, "seconds": 3661.0}
        (path / f"fold_{k}" / "result.yaml").write_text(yaml.safe_dump(row))
    path.mkdir(parents=True, exist_ok=True)
    (path / "folds.csv").write_text(split)
    words = ["--data.root", "images", "--name", path.name, "--model", "convnext_base", *settings]
    (path / "config.yaml").write_text(load.to_yaml(load.parse(words, prog="test")))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    made(root / "low", [0.7, 0.8], "--optim.lr", "0.1", "--data.workers", "3")
    made(root / "high", [0.92, 0.94], "--optim.lr", "0.001", "--model", "swin_tiny_patch4_window7_224")
    made(root / "camp" / "members" / "middle", [0.9], "--optim.lr", "0.001")
    made(root / "empty", [])
    return root


def test_the_best_run_is_first_with_the_spread_of_its_folds(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[1:4]]
    assert [row[1] for row in rows] == ["high", "camp/middle", "low"]
    assert rows[0][2:4] == ["0.9300", f"{np.std([0.92, 0.94], ddof=1):.4f}"]
    assert rows[1][3] == "-"
    assert lines[1].endswith("2 h 02")
    assert "1  model=swin_tiny_patch4_window7_224  optim.lr=0.001" in lines
    assert "2  model=convnext_base" in lines
    assert "3  model=convnext_base  optim.lr=0.1" in lines


def test_log_loss_ranks_the_other_way_round_and_nan_comes_last(runs: Path) -> None:
    broken = Entry("broken", ({"log_loss": float("nan")},), {}, "")
    order = [entry.name for entry in ranked([broken, *read([runs])], "log_loss")]
    assert order == ["high", "camp/middle", "low", "broken"]


def test_diff_shows_two_runs_side_by_side(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(runs.parent / "other", [0.5], split="ID,target,fold\n1.png,a,0\n")
    assert main(["leaderboard", "--diff", str(runs / "high"), str(runs.parent / "other")]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:]}
    assert lines["optim.lr"] == ["0.001", "null"]
    assert lines["macro-F1"] == ["0.9300", "±", "0.0141", "0.5000", "±", "-"]
    assert "out" not in lines
    assert out.rstrip().endswith("the folds are not the same")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        ([], "give RUN... to rank them"),
        (["--diff", "{runs}", "{runs}/low"], "holds 3 runs"),
        (["{runs}/empty"], "no run with a trained fold"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", *(word.format(runs=runs) for word in words)]) > 0
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_run_of_an_earlier_version_differs_in_no_renamed_setting(runs: Path) -> None:
    file = runs / "low" / "config.yaml"
    values = yaml.safe_load(file.read_text())
    values["optim"]["head_lr"] = values["optim"].pop("head_lr_mult")
    values["folds"]["kind"] = values["folds"].pop("strategy")
    values["schedule"]["name"] = "restarts"
    file.write_text(yaml.safe_dump(values))
    now = next(entry for entry in read([runs]) if entry.name == "high").settings
    old = next(entry for entry in read([runs]) if entry.name == "low").settings
    assert old.keys() == now.keys()
    assert old["optim.head_lr_mult"] == now["optim.head_lr_mult"] and old["schedule.name"] == "cosine_restarts"
