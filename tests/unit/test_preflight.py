"""`--mode full` looks ahead: damaged test images, tables and samples of their own columns, refusals before training."""

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
from infer.__main__ import main as infer
from infer.io import validation
from training import cli
from training.campaign import preflight, train_members
from training.report import summary
from training.run.run_dir import RESULT

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
def dacon(root: Path) -> Path:
    """The same data set in tables as Dacon gives them: paths in their cells, test images with IDs of their own."""
    lines = (root / "train.csv").read_text().splitlines()[1:]
    (root / "train.csv").write_text("\n".join(["img_path,label", *(f"./train/{line}" for line in lines)]) + "\n")
    listed = "".join(f"TEST_{n},./test/t{n}.png\n" for n in range(4))
    (root / "test.csv").write_text(f"id,img_path\n{listed}")
    (root / "sample_submission.csv").write_text("id,label\n" + "".join(f"TEST_{n},dog\n" for n in range(4)))
    return root


@pytest.fixture
def command(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`train_numpy.py --mode full` on that data set, without plots and pages."""
    for part in (summary.plots, summary.report):
        monkeypatch.setattr(part, "write", lambda *_: None)
    monkeypatch.setattr(summary.audit, "after", lambda _: [])
    return lambda *more: cli.main("numpy", [*WORDS, "--data.root", str(root), "--out", str(tmp_path / "runs"), *more])


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that is reached is a failure."""

    def reached(*_: object) -> None:
        raise AssertionError("the training was begun")

    monkeypatch.setattr(train_members, "train", reached)


def submission(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "runs").glob("*/submissions/*[0-9].csv")
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def probabilities(sent: Path) -> list[dict[str, str]]:
    return rows_of(sent.with_name(f"{sent.stem}_probabilities.csv"))


@pytest.mark.parametrize(("layout", "audit"), [("root", "true"), ("root", "false"), ("dacon", "false")])
def test_a_damaged_test_image_gets_the_class_prior_and_is_named_before_the_training(
    command: Callable[..., int], tmp_path: Path, request, capsys: pytest.CaptureFixture[str], layout: str, audit: str
) -> None:
    root = request.getfixturevalue(layout)
    file = root / "test" / "t2.png"
    file.write_bytes(file.read_bytes()[:60])
    assert command("--data.audit", audit) == 0
    err = capsys.readouterr().err
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2 and all("t2.png" in line and "the class prior" in line for line in warnings)
    assert "1 test image cannot be read" in err
    sent = submission(tmp_path)
    assert validation.faults(sent, root / "sample_submission.csv", labels=["cat", "dog"]) == []
    key, target = ("ID", "target") if layout == "root" else ("id", "label")
    assert [row[key] for row in rows_of(sent)] == [f"t{n}.png" if layout == "root" else f"TEST_{n}" for n in range(4)]
    labels = [row[target] for row in rows_of(sent)]
    assert labels[2] == "cat" and set(labels) <= {"cat", "dog"}
    prior = probabilities(sent)[2]
    np.testing.assert_allclose([float(prior["cat"]), float(prior["dog"])], [14 / 26, 12 / 26], rtol=1e-6)


def test_an_audit_that_tells_of_the_whole_data_set_is_read(root: Path, tmp_path: Path) -> None:
    (tmp_path / "audit.csv").write_bytes(
        table.encode([Finding("shift", "darker"), Finding("truncated", "", "t1.png", "test")])
    )
    (root / "test" / "t1.png").write_bytes(b"no image")
    (line,) = preflight.images(load.parse(["--data.root", str(root)], "test"), tmp_path / "audit.csv")
    assert line.startswith("1 test image cannot be read") and "t1.png" in line


@pytest.mark.usefixtures("untrained")
def test_a_damaged_test_image_stops_before_the_training_where_that_is_asked_for(
    command: Callable[..., int], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = root / "test" / "t2.png"
    file.write_bytes(file.read_bytes()[:60])
    assert command("--data.on_bad_test_image", "error") == 1
    err = capsys.readouterr().err
    assert "test images: 1 of 4 cannot be read, the first: " in err and "cannot be decoded" in err
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


@pytest.mark.parametrize(("layout", "column"), [("root", "is_dog"), ("dacon", "label")])
def test_a_sample_with_one_probability_column_gets_the_probability_of_the_class_that_sorts_last(
    command: Callable[..., int], tmp_path: Path, request, capsys: pytest.CaptureFixture[str], layout: str, column: str
) -> None:
    root = request.getfixturevalue(layout)
    sample = root / "sample_submission.csv"
    key, *_ = sample.read_text().partition(",")
    ids = [f"t{n}.png" if layout == "root" else f"TEST_{n}" for n in range(4)]
    sample.write_text(f"{key},{column}\n" + "".join(f"{name},0.5\n" for name in ids))
    assert command() == 0
    assert f"column '{column}' gets the probability of class 'dog', which sorts last" in capsys.readouterr().out
    first = submission(tmp_path)
    sent, beside = rows_of(first), probabilities(first)
    assert [row[key] for row in sent] == ids == [row[key] for row in beside]
    values = [float(row[column]) for row in sent]
    assert len(set(values)) > 1
    np.testing.assert_allclose(values, [float(row["dog"]) for row in beside], rtol=1e-6, atol=1e-8)
    words = ["--sample", str(sample), "--train", str(root / "train.csv")]
    target = "target" if layout == "root" else "label"
    assert infer(["validate", str(first), *words, "--target_column", target]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert cli.main("numpy", ["--mode", "predict", "--resume", str(folder), "--ensemble.positive", "cat"]) == 0
    (second,) = {*(folder / "submissions").glob("*[0-9].csv")} - {first}
    cats = [float(row[column]) for row in rows_of(second)]
    assert [a + b for a, b in zip(values, cats, strict=True)] == pytest.approx([1] * 4)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("sample_submission.csv", "id,label\nTEST_9,dog\n"), "1 of its IDs has no image (TEST_9"),
        (("sample_submission.csv", "id,cat,two\nTEST_0,0,0\n"), "has columns that are no class: two"),
        (("test.csv", "id,img_path\nTEST_0,./test/nowhere.png\nTEST_1,./test/x.png\n"), "2 of 2 IDs have no image"),
    ],
)
def test_what_prediction_would_refuse_is_refused_before_the_first_epoch(
    command: Callable[..., int], dacon: Path, tmp_path: Path, change: tuple[str, str], said: str, capsys
) -> None:
    (dacon / change[0]).write_text(change[1])
    assert command() == 1
    assert said in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob(RESULT))


@pytest.mark.usefixtures("dacon", "untrained")
def test_a_positive_class_that_is_none_is_refused_before_the_first_epoch(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--ensemble.positive", "Dog") == 2
    assert "is no class of the members, perhaps you mean 'dog'" in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob(RESULT))
