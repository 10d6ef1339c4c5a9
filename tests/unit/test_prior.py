"""Images that cannot be read: the class prior in their rows, and what the other two choices do."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from pyarrow import parquet

import infer
from infer.io import prior
from models.card import Card
from tests.unit import members

COUNTS = (1, 7, 2)
SHARES = np.array([2, 8, 3]) / 13  # one image more in each class


def run(*words):
    return infer.main([str(word) for word in words])


@pytest.fixture
def damaged(tmp_path):
    """A member that knows its training classes' counts, four images of which one is cut short, and a sample."""
    paths, _ = members.photographs(tmp_path / "images", count=4)
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    (tmp_path / "sample.csv").write_text("ID,target\n" + "".join(f"{path.name},ant\n" for path in paths))
    folder = members.checkpoint(tmp_path / "m", of=replace(members.card(), class_counts=COUNTS))
    return ["--member", folder, "--images", tmp_path / "images"]


def test_one_damaged_image_does_not_cost_a_submission(damaged, tmp_path, capsys):
    out, sample = tmp_path / "s.csv", tmp_path / "sample.csv"
    assert run(*damaged, "--sample", sample, "--out", out) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "002.png" in err and "its row holds the class prior" in err
    assert run("validate", out, "--sample", sample) == 0
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 4 and rows[2] == {"ID": "002.png", "target": "bee"}
    beside = list(csv.DictReader((tmp_path / "s_probabilities.csv").open()))
    assert np.allclose([float(beside[2][name]) for name in members.CLASSES], SHARES)
    assert [bool(row["error"]) for row in beside] == [False, False, True, False]


def test_a_label_of_the_prior_is_its_likeliest_class_whatever_the_multipliers(damaged, tmp_path):
    text = "members: [{path: m}]\nclass_multipliers: {ant: 1.0e+30}\n"
    (tmp_path / "e.yaml").write_text(text)
    words = ["--ensemble", tmp_path / "e.yaml", *damaged[2:], "--out", tmp_path / "s.csv"]
    assert run(*words) == 0
    labels = [row["target"] for row in csv.DictReader((tmp_path / "s.csv").open())]
    assert labels[2] == "bee" and labels[0] == "ant"


def test_the_other_files_hold_the_prior_and_say_why(damaged, tmp_path):
    outs = [tmp_path / name for name in ("s.jsonl", "s.parquet", "s.npz", "w.csv")]
    assert run(*damaged, "--format", "wide", "--out", *outs) == 0
    said = json.loads(outs[0].read_text().splitlines()[2])
    assert said["label"] == "bee" and "002.png" in said["error"]
    table = parquet.read_table(outs[1]).to_pydict()
    assert table["label"][2] == "bee" and np.isclose(table["bee"][2], 8 / 13) and "002.png" in table["error"][2]
    with np.load(outs[2]) as held:
        assert np.allclose(held["probabilities"][2], SHARES) and np.isfinite(held["probabilities"]).all()
    assert "002.png,0.15" in outs[3].read_text()


def test_without_damage_no_file_has_a_column_of_errors(tmp_path):
    members.photographs(tmp_path / "images", count=2)
    folder = members.checkpoint(tmp_path / "m")
    assert run("--member", folder, "--images", tmp_path / "images", "--out", tmp_path / "s.csv") == 0
    assert (tmp_path / "s_probabilities.csv").read_text().splitlines()[0] == "ID,ant,bee,cat"


def test_a_run_that_stopped_at_a_damaged_image_goes_on_with_the_prior(damaged, tmp_path, capsys):
    words = [*damaged, "--batch_size", "1", "--out", tmp_path / "s.csv"]
    assert run(*words, "--on_bad_image", "error") == 1
    assert "002.png" in capsys.readouterr().err
    assert run(*words, "--resume") == 0
    assert [row["target"] for row in csv.DictReader((tmp_path / "s.csv").open())][2] == "bee"


def test_images_that_all_cannot_be_read_are_no_submission(damaged, tmp_path, capsys):
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"no image")
    assert run(*damaged, "--out", tmp_path / "s.csv") == 1
    assert "none of the 4 images can be read" in capsys.readouterr().err
    assert not (tmp_path / "s.csv").exists() and not (tmp_path / "s.csv.part").exists()


def test_where_no_member_knows_the_counts_all_classes_are_alike():
    known, unknown = replace(members.card(), class_counts=COUNTS), members.card()
    assert np.allclose(prior.of_cards([unknown, known]).probabilities, SHARES)
    assert np.allclose(prior.of_cards([unknown]).probabilities, 1 / 3)
    assert "all classes alike" in prior.of_cards([unknown]).text
    assert Card.from_json(known.to_json(), "test") == known and "class_counts" not in unknown.to_json()
