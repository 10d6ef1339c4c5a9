"""Names of one class, labels by multipliers, and sums of what is printed: from an ensemble's file to the submission."""

import csv
from fractions import Fraction

import numpy as np
import pytest
import yaml

import infer
from config.errors import ConfigError
from ensemble import aliases
from infer.io import submission, validation
from tests.unit import members

NAMES = ("ant", "bee", "cat")


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_names_of_one_class_share_its_probability_and_count_together():
    given = np.array([[0.4, 0.35, 0.25]], np.float32)
    groups = aliases.parse(["bee=cat"])
    assert np.allclose(aliases.shared(given, NAMES, groups, NAMES), [[0.4, 0.3, 0.3]])
    assert aliases.summed(given, NAMES, groups).argmax() == 1
    # A name that no image was labelled with, and one that the file does not ask for.
    groups = aliases.parse(["bee=wasp=hornet"])
    wide = aliases.shared(given, NAMES, groups, ("wasp", "ant", "cat", "hornet"))
    assert np.allclose(wide, [[0.175, 0.4, 0.25, 0.175]])


@pytest.mark.parametrize("texts", [["ant"], ["ant="], ["ant=bee", "bee=cat"]])
def test_bad_aliases_are_one_line(texts):
    with pytest.raises(ConfigError, match="--alias"):
        aliases.parse(texts)


def test_printed_rows_sum_to_one_exactly_enough(tmp_path):
    rng = np.random.default_rng(0)
    given = rng.dirichlet(np.full(396, 0.05), 200).astype(np.float32)
    names = [f"c{i}" for i in range(396)]
    (tmp_path / "sample.csv").write_text(
        "ID," + ",".join(names) + "\n" + "".join(f"{i}" + ",0" * 396 + "\n" for i in range(200))
    )
    layout = submission.sample_layout(tmp_path / "sample.csv", names)
    submission.write(tmp_path / "mine.csv", layout, given, names)
    printed = rows(tmp_path / "mine.csv")[1:]
    sums = [sum(Fraction(cell) for cell in row[1:]) for row in printed]
    assert max(abs(total - 1) for total in sums) < 1e-15
    assert np.allclose(np.array([row[1:] for row in printed], np.float32), given, rtol=1e-6, atol=1e-7)
    assert validation.faults(tmp_path / "mine.csv", tmp_path / "sample.csv") == []


def ensemble_file(tmp_path, **more):
    members.checkpoint(tmp_path / "m", sharpness=5.0)
    (tmp_path / "e.yaml").write_text(yaml.safe_dump({"members": [{"path": "m"}], **more}))
    members.photographs(tmp_path / "test", count=6)
    return ["--ensemble", tmp_path / "e.yaml", "--images", tmp_path / "test", "--out"]


def test_a_wide_sample_may_ask_for_names_that_no_image_was_labelled_with(tmp_path):
    words = ensemble_file(tmp_path, aliases=[["bee", "wasp"]])
    sample = tmp_path / "sample.csv"
    sample.write_text("wasp,ID,cat,bee,ant\n" + "".join(f"0,{i:03},0,0,0\n" for i in range(6)))
    assert infer.main([*map(str, words), str(tmp_path / "s.csv"), "--sample", str(sample)]) == 0
    found = rows(tmp_path / "s.csv")
    assert found[0] == ["wasp", "ID", "cat", "bee", "ant"]
    assert all(float(row[0]) == pytest.approx(float(row[3]), rel=1e-6) for row in found[1:])
    assert validation.faults(tmp_path / "s.csv", sample) == []
    sample.write_text("wasp,ID,cat,ant\n" + "".join(f"0,{i:03},0,0\n" for i in range(6)))
    assert infer.main([*map(str, words), str(tmp_path / "t.csv"), "--sample", str(sample)]) == 0
    assert [row[0] for row in rows(tmp_path / "t.csv")[1:]] != [row[0] for row in found[1:]]
    sample.write_text("hornet,ID,cat,ant\n" + "".join(f"0,{i:03},0,0\n" for i in range(6)))
    assert infer.main([*map(str, words), str(tmp_path / "u.csv"), "--sample", str(sample)]) == 1


def test_multipliers_choose_the_label_and_leave_the_probabilities(tmp_path):
    words = ensemble_file(tmp_path, class_multipliers={"cat": 1e6})
    assert infer.main([*map(str, words), str(tmp_path / "s.csv")]) == 0
    assert {row[1] for row in rows(tmp_path / "s.csv")[1:]} == {"cat"}
    probabilities = np.array([row[1:] for row in rows(tmp_path / "s_probabilities.csv")[1:]], float)
    with infer.load(tmp_path / "m") as plain:
        wanted = plain.predict(sorted((tmp_path / "test").iterdir())).probabilities
    assert np.allclose(probabilities, wanted, atol=1e-6) and set(wanted.argmax(axis=1)) != {2}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("\ufeffID,target\na,1\nb,2\n", "byte-order mark"),
        ("ID;target\na;1\nb;2\n", "separated by ';' where the sample has ','"),
        ("ID\ttarget\na\t1\nb\t2\n", "separated by '\\t'"),
        ("ID,target\na,1\nb,7\n", "column 'target': 1 label is unknown, the first is '7' in row 3"),
        ("ID,target\na,1\nb,nan\n", "column 'target': 1 cell is NaN or infinite, the first in row 3"),
    ],
)
def test_the_command_names_the_fault(tmp_path, capsys, text, fault):
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8")
    (tmp_path / "sample.csv").write_text("ID,target\na,0\nb,0\n")
    (tmp_path / "train.csv").write_text("ID,target\nx,1\ny,2\n")
    words = ["validate", tmp_path / "mine.csv", "--sample", tmp_path / "sample.csv", "--train", tmp_path / "train.csv"]
    assert infer.main([str(word) for word in words]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert fault in lines[0] and len(lines) <= 2
    (tmp_path / "mine.csv").write_text("ID,target\na,1\nb,2\n")
    assert infer.main([str(word) for word in words]) == 0
