"""What a campaign predicts: damaged test images, tables and samples of their own columns, refusals before training."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from infer import validate
from training import audit, cli, report
from training import campaign as single
from training.fold import RESULT

SETTINGS = [
    *("--model", "convnext_atto", "--weights", "none", "--data.image_size", "16", "--train.epochs", "1"),
    *("--data.audit", "false", "--data.workers", "1", "--mode", "full"),
]


@pytest.fixture
def data(digits: Path, all_digits: Path, tmp_path: Path) -> Path:
    """Digits 0 and 1 in folders and tables as Dacon gives them; the last of three test images is cut off."""
    root = tmp_path / "data"
    with (digits / "train.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["target"] in "01"]
    (root / "train").mkdir(parents=True)
    (root / "test").mkdir()
    lines = ["img_path,label"]
    for row in rows:
        shutil.copy(digits / "train" / row["ID"], root / "train")
        lines.append(f"./train/{row['ID']},{'zero' if row['target'] == '0' else 'one'}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    images = sorted((all_digits / "test").iterdir())[:3]
    for image in images:
        shutil.copy(image, root / "test")
    cut = root / "test" / images[2].name
    cut.write_bytes(cut.read_bytes()[:60])
    listed = [f"TEST_{i},./test/{image.name}" for i, image in enumerate(images)]
    (root / "test.csv").write_text("\n".join(["id,img_path", *listed]) + "\n")
    (root / "sample_submission.csv").write_text("id,label\nTEST_0,one\nTEST_1,one\nTEST_2,one\n")
    return root


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in (single.plots, report):
        monkeypatch.setattr(part, "write", lambda *_: None)
    monkeypatch.setattr(audit, "after", lambda _: [])


def full(data: Path, *more: str) -> int:
    return cli.main("numpy", ["--data.root", str(data), "--out", str(data.parent / "runs"), *SETTINGS, *more])


def submitted(data: Path) -> dict[str, str]:
    (path,) = (data.parent / "runs").glob("*/submissions/*[0-9].csv")
    with path.open(newline="") as stream:
        return {row["id"]: row["label"] for row in csv.DictReader(stream)}


def test_a_damaged_test_image_costs_no_submission(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert full(data) == 0
    rows = submitted(data)
    assert list(rows) == ["TEST_0", "TEST_1", "TEST_2"] and set(rows.values()) <= {"zero", "one"}
    (path,) = (data.parent / "runs").glob("*/submissions/*[0-9].csv")
    assert validate.faults(path, data / "sample_submission.csv", labels=["zero", "one"]) == []
    said = capsys.readouterr().err
    assert "1 test images cannot be read" in said and sorted((data / "test").iterdir())[2].name in said
    (beside,) = (data.parent / "runs").glob("*/submissions/*_probabilities.csv")
    with beside.open(newline="") as stream:
        *_, last = csv.DictReader(stream)
    np.testing.assert_allclose([float(last["one"]), float(last["zero"])], [9 / 18, 9 / 18], rtol=1e-6)


def test_a_damaged_test_image_stops_where_the_settings_say_so(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert full(data, "--data.on_bad_test_image", "error") == 1
    assert "cannot be decoded" in capsys.readouterr().err


def test_one_column_of_fractions_gets_the_probability_of_one_class(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "sample_submission.csv").write_text("id,label\nTEST_0,0.5\nTEST_1,0.5\nTEST_2,0.5\n")
    assert full(data) == 0
    assert "gets the probability of class 'zero', which sorts last" in capsys.readouterr().out
    (beside,) = (data.parent / "runs").glob("*/submissions/*_probabilities.csv")
    with beside.open(newline="") as stream:
        expected = {row["id"]: float(row["zero"]) for row in csv.DictReader(stream)}
    assert {name: float(cell) for name, cell in submitted(data).items()} == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("sample_submission.csv", "id,label\nTEST_9,one\n"), "1 of its IDs have no image (TEST_9"),
        (("sample_submission.csv", "id,zero,two\nTEST_0,0,0\n"), "has columns that are no class: two"),
        (("test.csv", "id,img_path\nTEST_0,./test/nowhere.png\nTEST_1,./test/x.png\n"), "2 of 2 IDs have no image"),
    ],
)
def test_what_prediction_would_refuse_is_refused_before_the_first_epoch(
    change: tuple[str, str], said: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / change[0]).write_text(change[1])
    assert full(data) == 1
    assert said in capsys.readouterr().err
    assert not list((data.parent / "runs").rglob(RESULT))


def test_a_positive_class_that_is_none_is_refused_before_the_first_epoch(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert full(data, "--ensemble.positive", "Zero") == 2
    assert "is no class of the members, perhaps you mean 'zero'" in capsys.readouterr().err
    assert not list((data.parent / "runs").rglob(RESULT))
