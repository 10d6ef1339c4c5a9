"""`--mode full` looks ahead: damaged test images with and without an audit, no folder, another `positive`."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config import load
from data.audit import table
from data.audit.findings import Finding
from infer import validate
from infer.__main__ import main as infer
from training import campaign as single
from training import cli, preflight, turns

WORDS = ["--model", "convnext_atto", "--weights", "none", "--data.image_size", "16", "--data.workers", "1"]
WORDS += ["--train.epochs", "1", "--train.batch_size", "8", "--optim.lr", "0.05", "--mode", "full"]


def picture(path: Path, draw: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Thirteen cats, eleven dogs, four test images and a sample of labels."""
    root, draw = tmp_path / "data", np.random.default_rng(0)
    names = ["cat" if n % 2 == 0 or n == 1 else "dog" for n in range(24)]
    for n in range(24):
        picture(root / "train" / f"{n}.png", draw)
    for n in range(4):
        picture(root / "test" / f"t{n}.png", draw)
    (root / "train.csv").write_text("ID,target\n" + "".join(f"{n}.png,{name}\n" for n, name in enumerate(names)))
    (root / "sample_submission.csv").write_text("ID,target\n" + "".join(f"t{n}.png,cat\n" for n in range(4)))
    return root


@pytest.fixture
def command(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`train_numpy.py --mode full` on that data set, without plots and pages."""
    for part in (single.plots, single.report):
        monkeypatch.setattr(part, "write", lambda *_: None)
    monkeypatch.setattr(single.audit, "after", lambda _: [])
    return lambda *more: cli.main("numpy", [*WORDS, "--data.root", str(root), "--out", str(tmp_path / "runs"), *more])


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that is reached is a failure."""

    def reached(*_: object) -> None:
        raise AssertionError("the training was begun")

    monkeypatch.setattr(turns, "train", reached)


def submission(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "runs").glob("*/submissions/*[0-9].csv")
    return found


@pytest.mark.parametrize("audit", ["true", "false"])
def test_a_damaged_test_image_gets_the_class_prior_and_is_named_before_the_training(
    command: Callable[..., int], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], audit: str
) -> None:
    file = root / "test" / "t2.png"
    file.write_bytes(file.read_bytes()[:60])
    assert command("--data.audit", audit) == 0
    err = capsys.readouterr().err.splitlines()
    warnings = [line for line in err if line.startswith("warning: ")]
    assert len(warnings) == 2 and all("t2.png" in line and "the class prior" in line for line in warnings)
    sent = submission(tmp_path)
    assert validate.faults(sent, root / "sample_submission.csv", labels=["cat", "dog"]) == []
    assert [row["target"] for row in csv.DictReader(sent.open())][2] == "cat"
    beside = list(csv.DictReader(sent.with_name(f"{sent.stem}_probabilities.csv").open()))
    assert float(beside[2]["cat"]) == pytest.approx(14 / 26)


def test_an_audit_that_tells_of_the_whole_data_set_is_read(root: Path, tmp_path: Path) -> None:
    (tmp_path / "audit.csv").write_bytes(
        table.encode([Finding("shift", "darker"), Finding("truncated", "", "t1.png", "test")])
    )
    (root / "test" / "t1.png").write_bytes(b"no image")
    (line,) = preflight.images(load.parse(["--data.root", str(root)], "test"), tmp_path / "audit.csv")
    assert line.startswith("1 test images cannot be read") and "t1.png" in line


@pytest.mark.usefixtures("untrained")
def test_a_damaged_test_image_stops_before_the_training_where_that_is_asked_for(
    command: Callable[..., int], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "test" / "t2.png").write_bytes(b"no image")
    assert command("--data.on_bad_test_image", "error") == 1
    assert "test images: 1 of 4 cannot be read, the first: " in capsys.readouterr().err
    for path in (root / "test").iterdir():
        path.write_bytes(b"no image")
    assert command("--data.audit", "false") == 1, "without any readable image there is nothing to send"


def test_a_file_in_the_place_of_the_submissions_is_told_before_the_training(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0
    (folder,) = (tmp_path / "runs").iterdir()
    for path in (folder / "submissions").iterdir():
        path.unlink()
    (folder / "submissions").rmdir()
    (folder / "submissions").write_text("")
    capsys.readouterr()
    assert command() == 2
    said = capsys.readouterr()
    assert "submissions is no folder" in said.err and "folds are done" not in said.out


def test_a_sample_with_one_probability_column_gets_the_probability_of_the_class_that_sorts_last(
    command: Callable[..., int], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = root / "sample_submission.csv"
    sample.write_text("ID,is_dog\n" + "".join(f"t{n}.png,0.5\n" for n in range(4)))
    assert command() == 0
    assert "column 'is_dog' gets the probability of class 'dog', which sorts last" in capsys.readouterr().out
    first = submission(tmp_path)
    beside = list(csv.DictReader(first.with_name(f"{first.stem}_probabilities.csv").open()))
    sent = [row["is_dog"] for row in csv.DictReader(first.open())]
    assert len(set(sent)) > 1
    np.testing.assert_allclose([float(cell) for cell in sent], [float(row["dog"]) for row in beside], rtol=1e-6)
    assert infer(["validate", str(first), "--sample", str(sample), "--train", str(root / "train.csv")]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert cli.main("numpy", ["--mode", "predict", "--resume", str(folder), "--ensemble.positive", "cat"]) == 0
    (second,) = {*(folder / "submissions").glob("*[0-9].csv")} - {first}
    cats = [row["is_dog"] for row in csv.DictReader(second.open())]
    assert [float(a) + float(b) for a, b in zip(sent, cats, strict=True)] == pytest.approx([1] * 4)
