from datetime import datetime

import numpy as np
import pytest

from config.errors import ConfigError, DataError
from infer import submission, summary, validate

CLASSES = ("0", "1", "2")
PROBABILITIES = np.array([[0.1, 0.2, 0.7], [0.8, 0.1, 0.1], [0.25, 0.5, 0.25]], np.float32)


def sample(tmp_path, text):
    path = tmp_path / "sample_submission.csv"
    path.write_text(text)
    return path


def written(tmp_path, text, ids, classes=CLASSES):
    layout = submission.sample_layout(sample(tmp_path, text), classes)
    rows = submission.align(ids, layout, "sample")
    out = tmp_path / "out.csv"
    submission.write(out, layout, PROBABILITIES[rows], classes)
    return out.read_text()


def test_columns_order_and_integers_follow_the_sample(tmp_path):
    text = written(tmp_path, "target,ID\n0,c.png\n0,a.png\n0,b.png\n", ["a.png", "b.png", "c.png"])
    assert text == "target,ID\n1,c.png\n2,a.png\n0,b.png\n"


def test_a_float_sample_gets_floats_and_text_stays_text(tmp_path):
    assert written(tmp_path, "ID,target\na,0.0\nb,0.0\nc,0.0\n", ["a", "b", "c"]).splitlines()[1] == "a,2.0"
    (tmp_path / "out.csv").unlink(), (tmp_path / "out_probabilities.csv").unlink()
    text = written(tmp_path, "ID,label\na,cat\nb,cat\nc,cat\n", ["a", "b", "c"], ("ant", "bee", "cat, big"))
    assert text == 'ID,label\na,"cat, big"\nb,ant\nc,bee\n'


def test_a_wide_sample_gets_probabilities_in_its_own_class_order(tmp_path):
    text = written(tmp_path, "id,2,0,1\nb,0,0,0\na,0,0,0\nc,0,0,0\n", ["a", "b", "c"])
    lines = [line.split(",") for line in text.splitlines()]
    assert lines[0] == ["id", "2", "0", "1"]
    assert lines[1][0] == "b" and np.array_equal(np.float32(lines[1][1:]), PROBABILITIES[1, [2, 0, 1]])
    assert validate.faults(tmp_path / "out.csv", tmp_path / "sample_submission.csv") == []


def test_probabilities_stand_beside_and_keep_every_bit(tmp_path):
    written(tmp_path, "ID,target\na,0\nb,0\nc,0\n", ["a", "b", "c"])
    lines = (tmp_path / "out_probabilities.csv").read_text().splitlines()
    assert lines[0] == "ID,0,1,2"
    assert np.array_equal(np.float32([line.split(",")[1:] for line in lines[1:]]), PROBABILITIES)


def test_ids_match_without_their_extension(tmp_path):
    text = written(tmp_path, "ID,target\nx.3,0\nx.1,0\nx.2,0\n", ["x.1.png", "x.2.jpg", "x.3.png"])
    assert text.splitlines()[1:] == ["x.3,1", "x.1,2", "x.2,0"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("ID\na\n", "one column"),
        ("ID,target\n", "no rows"),
        ("ID,target\na,0\na,0\n", "repeats the ID 'a'"),
        ("ID,0,1\na,0,0\n", "lacks the classes 2"),
        ("ID,0,1,2,3\na,0,0,0,0\n", "no class: 3"),
        ("ID,target,note\na,0,x\n", "neither one target nor one for each class"),
        ("ID,target\na,0.5\n", "fractions"),
        ("ID,target\na,0,0\n", "line 2"),
    ],
)
def test_an_unusable_sample_is_one_line(tmp_path, text, fault):
    with pytest.raises(DataError, match=fault) as caught:
        submission.sample_layout(sample(tmp_path, text), CLASSES)
    assert "\n" not in str(caught.value) and "sample_submission.csv" in str(caught.value)


def test_a_numeric_sample_refuses_named_classes(tmp_path):
    with pytest.raises(DataError, match="names such as 'bee'"):
        submission.sample_layout(sample(tmp_path, "ID,target\na,0\n"), ("1", "bee"))


def test_other_ids_are_counted_and_named(tmp_path):
    layout = submission.sample_layout(sample(tmp_path, "ID,target\na,0\nz,0\n"), CLASSES)
    with pytest.raises(DataError, match=r"s.csv: 1 of its IDs have no image \(z\); 1 images are not in it \(b\)"):
        submission.align(["a", "b"], layout, "s.csv")
    with pytest.raises(DataError, match="without their extension"):
        submission.align(["a.png", "a.jpg", "z.png"], layout, "s.csv")


def test_nothing_is_overwritten(tmp_path):
    layout = submission.plain_layout(["a", "b", "c"])
    for taken in ("out.csv", "out_probabilities.csv"):
        (tmp_path / taken).write_text("precious")
        with pytest.raises(ConfigError, match=f"{taken}: exists already"):
            submission.write(tmp_path / "out.csv", layout, PROBABILITIES, CLASSES)
        assert [p.read_text() for p in tmp_path.iterdir()] == ["precious"]
        (tmp_path / taken).unlink()


def test_the_name_tells_date_model_ensemble_tta_and_time(tmp_path):
    now = datetime(2025, 3, 9, 14, 5, 6)
    views = ("original", "hflip")
    both = submission.destination(tmp_path, ["convnext_atto"] * 2, views, now)
    assert both.name == "20250309_convnext_atto_ensemble_tta_140506.csv"
    both.write_text("")
    again = submission.destination(tmp_path, ["convnext_atto"] * 2, views, now)
    assert again.name == "20250309_convnext_atto_ensemble_tta_140506_2.csv"
    assert submission.destination(tmp_path, ["a"], ("original",), now).name == "20250309_a_140506.csv"
    assert submission.destination(tmp_path, ["a", "b"], ("original",), now).name == "20250309_mixed_ensemble_140506.csv"
    assert submission.destination(tmp_path / "x.csv", ["a"], views, now) == tmp_path / "x.csv"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("ID,label\na,1\nb,2\n", "column 'target' is missing"),
        ("target,ID\n1,a\n2,b\n", "columns are in another order"),
        ("ID,target\na,1\n", "1 IDs are missing, such as 'b'"),
        ("ID,target\na,1\nb,2\nc,1\n", "1 IDs are not in the sample, such as 'c'"),
        ("ID,target\na,1\nb,2\nb,2\n", "1 IDs are repeated, such as 'b'"),
        ("ID,target\nb,1\na,2\n", "IDs are in another order: row 2 is 'b'"),
        ("ID,target\na,1\nb,\n", "1 cells are empty, the first in row 3"),
        ("ID,target\na,1\nb,2.5\n", "holds float values where the sample has int"),
        ("ID,target\na,1\nb,cat\n", "holds text values where the sample has int"),
        ("ID,target\na,1\nb\n", "line 3 has 1 cells"),
    ],
)
def test_the_validator_names_each_fault(tmp_path, text, fault):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    found = validate.faults(path, sample(tmp_path, "ID,target\na,0\nb,0\n"))
    assert len(found) == 1 + (fault == "column 'target' is missing") and fault in found[0]


def test_the_validator_names_all_faults_at_once(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("ID,target\nz,\n")
    found = "\n".join(validate.faults(path, sample(tmp_path, "ID,target\na,0\nb,0\n")))
    assert "missing" in found and "not in the sample" in found and "empty" in found


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("0.5,0.4", "row 3 (b): sums to 0.9"),
        ("1.5,-0.5", "row 3 (b): 1.5 in column 'x' is above 1"),
        ("-0.5,1.5", "row 3 (b): -0.5 in column 'x' is negative"),
        ("nan,1", "column 'x': 1 cells are NaN or infinite, the first in row 3"),
        ("inf,1", "column 'x': 1 cells are NaN or infinite, the first in row 3"),
    ],
)
def test_the_validator_checks_probabilities(tmp_path, row, fault):
    path = tmp_path / "mine.csv"
    path.write_text(f"ID,x,y\na,0.5,0.5\nb,{row}\n")
    found = validate.faults(path, sample(tmp_path, "ID,x,y\na,0,0\nb,0,0\n"))
    assert len(found) == 1 and fault in found[0]


def test_the_summary_counts_classes_and_finds_the_unsure():
    text = summary.text(PROBABILITIES, ("ant", "bee", "cat"), ["a", "b", "c"])
    assert "mean top-1 probability 0.667; 0.0% of the images are under 0.5" in text
    assert "most uncertain: c (0.500), a (0.700), b (0.800)" in text
    assert [line.split()[:3] for line in text.splitlines()[1:4]] == [[c, "1", "33.3%"] for c in ("ant", "bee", "cat")]


def test_the_summary_of_many_classes_shows_the_most_frequent():
    rows = np.eye(30, dtype=np.float32)[[29] * 3 + [5]]
    lines = summary.distribution(rows, [f"c{i}" for i in range(30)]).splitlines()
    assert lines[1].split()[:2] == ["c29", "3"] and "10 more classes" in lines[-2]
    assert lines[-1] == "28 of 30 classes are never predicted"
