from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest

from config.errors import ConfigError, DataError
from infer.io import submission, summary, validation

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
    assert validation.faults(tmp_path / "out.csv", tmp_path / "sample_submission.csv") == []


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
    with pytest.raises(DataError, match=r"s.csv: 1 of its IDs has no image \(z\); 1 image is not in it \(b\)"):
        submission.align(["a", "b"], layout, "s.csv")
    with pytest.raises(DataError, match="without their extension"):
        submission.align(["a.png", "a.jpg", "z.png"], layout, "s.csv")


def test_an_existing_submission_is_not_overwritten(tmp_path):
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
        ("ID,target\na,1\n", "1 ID is missing, such as 'b'"),
        ("ID,target\na,1\nb,2\nc,1\n", "1 ID is not in the sample, such as 'c'"),
        ("ID,target\na,1\nb,2\nb,2\n", "1 ID is repeated, such as 'b'"),
        ("ID,target\nb,1\na,2\n", "IDs are in another order: row 2 is 'b'"),
        ("ID,target\na,1\nb,\n", "1 cell is empty, the first in row 3"),
        ("ID,target\na,1\nb,2.5\n", "holds float values where the sample has int"),
        ("ID,target\na,1\nb,cat\n", "holds text values where the sample has int"),
        ("ID,target\na,1\nb\n", "line 3 has 1 cell,"),
    ],
)
def test_the_validator_names_each_fault(tmp_path, text, fault):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    found = validation.faults(path, sample(tmp_path, "ID,target\na,0\nb,0\n"))
    assert len(found) == 1 + (fault == "column 'target' is missing") and fault in found[0]


def test_the_validator_names_all_faults_at_once(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("ID,target\nz,\n")
    found = "\n".join(validation.faults(path, sample(tmp_path, "ID,target\na,0\nb,0\n")))
    assert "missing" in found and "not in the sample" in found and "empty" in found


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("0.5,0.4", "row 3 (b): sums to 0.9"),
        ("1.5,-0.5", "row 3 (b): 1.5 in column 'x' is above 1"),
        ("-0.5,1.5", "row 3 (b): -0.5 in column 'x' is negative"),
        ("nan,1", "column 'x': 1 cell is NaN or infinite, the first in row 3"),
        ("inf,1", "column 'x': 1 cell is NaN or infinite, the first in row 3"),
    ],
)
def test_the_validator_checks_probabilities(tmp_path, row, fault):
    path = tmp_path / "mine.csv"
    path.write_text(f"ID,x,y\na,0.5,0.5\nb,{row}\n")
    found = validation.faults(path, sample(tmp_path, "ID,x,y\na,0,0\nb,0,0\n"))
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


TWO = ("0", "1")
PAIR = np.array([[0.25, 0.75], [0.9, 0.1], [0.5, 0.5]], np.float32)


@pytest.mark.parametrize(
    ("text", "positive", "classes", "said"),
    [
        ("id,has_cactus\na,0.5\nb,0.5\nc,0.5\n", None, TWO, [0.75, 0.1, 0.5]),
        ("id,has_cactus\na,0.5\nb,0.5\nc,0.5\n", "0", TWO, [0.25, 0.9, 0.5]),
        ("id,has_cactus\na,0\nb,0\nc,0\n", "1", TWO, [0.75, 0.1, 0.5]),
        ("id,has_cactus\na,\nb,\nc,\n", "1", TWO, [0.75, 0.1, 0.5]),
        ("id,cat\na,0.3\nb,1\nc,0\n", None, ("cat", "dog"), [0.25, 0.9, 0.5]),
        ("id,is_dog\na,0.3\nb,1\nc,0\n", None, ("cat", "dog"), [0.75, 0.1, 0.5]),
    ],
)
def test_one_column_of_probability_is_that_of_the_positive_class(tmp_path, text, positive, classes, said):
    layout = submission.sample_layout(sample(tmp_path, text), classes, positive=positive)
    out = tmp_path / "out.csv"
    submission.write(out, layout, PAIR, classes)
    cells = [line.split(",")[1] for line in out.read_text().splitlines()[1:]]
    assert np.array_equal(np.float32(cells), np.float32(said))
    assert validation.faults(out, tmp_path / "sample_submission.csv", positive=positive is not None) == []


def test_a_column_of_zeros_gets_labels_and_a_line_about_the_other_form(tmp_path):
    text = "id,has_cactus\na,0\nb,0\nc,0\n"
    layout = submission.sample_layout(sample(tmp_path, text), TWO)
    assert "gets labels" in layout.note and "positive CLASS" in layout.note
    submission.write(tmp_path / "out.csv", layout, PAIR, TWO)
    assert (tmp_path / "out.csv").read_text() == "id,has_cactus\na,1\nb,0\nc,0\n"


@pytest.mark.parametrize(
    ("text", "positive", "classes", "fault"),
    [
        ("id,x\na,0.5\n", None, CLASSES, "fractions, .* the members know 3 classes, not two"),
        ("id,x\na,1.5\n", None, TWO, "1.5 is no probability"),
        ("id,x\na,0.5\n", "2", CLASSES, "the members know 3 classes"),
        ("id,x\na,0.5\n", "Dog", ("cat", "dog"), "is no class of the members, perhaps you mean 'dog'"),
        ("id,x\na,cat\n", "dog", ("cat", "dog"), "has text in column 'x'"),
        ("id,cat,dog\na,0,0\n", "dog", ("cat", "dog"), "has one a class"),
        ("id,x\na,0\n", None, ("cat", "dog"), "or give positive CLASS"),
    ],
)
def test_a_column_of_probability_that_cannot_be_is_refused_in_one_line(tmp_path, text, positive, classes, fault):
    with pytest.raises((ConfigError, DataError), match=fault) as caught:
        submission.sample_layout(sample(tmp_path, text), classes, positive=positive)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ("a,0.2\nb,1.5\n", "row 3 (b): 1.5 in column 'x' is above 1"),
        ("a,0.2\nb,-1\n", "row 3 (b): -1 in column 'x' is negative"),
        ("a,0.2\nb,\n", "1 cell is empty, the first in row 3"),
        ("a,0.2\nb,nan\n", "1 cell is NaN"),
        ("a,0.2\nb,cat\n", "holds text values where the sample has float"),
    ],
)
def test_the_validator_knows_one_column_of_probability(tmp_path, rows, fault):
    path = tmp_path / "mine.csv"
    path.write_text(f"id,x\n{rows}")
    (found,) = validation.faults(path, sample(tmp_path, "id,x\na,0.5\nb,0.5\n"), labels=["0", "1"])
    assert fault in found
    path.write_text("id,x\na,0.2\nb,0.5\n")
    (found,) = validation.faults(path, sample(tmp_path, "id,x\na,0\nb,0\n"), labels=["0", "1"])[:1]
    assert "give --positive CLASS" in found


def test_ids_are_compared_in_one_form_and_written_as_the_sample_has_them(tmp_path):
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    text = f"ID,target\n{decomposed},0\n test\\B.PNG,0\n"
    layout = submission.sample_layout(sample(tmp_path, text), CLASSES)
    rows = submission.align([r"test\b.png", composed], replace(layout, ids=layout.ids[1:] + layout.ids[:1]), "s")
    assert rows.tolist() == [0, 1]
    layout = replace(layout, ids=(decomposed, " b "))
    assert submission.align(["b", composed], layout, "s").tolist() == [1, 0]
    submission.write(tmp_path / "out.csv", layout, PROBABILITIES[:2], CLASSES)
    assert (tmp_path / "out.csv").read_text() == f"ID,target\n{decomposed},2\n b ,0\n"


@pytest.mark.parametrize("asked", ["TEST/B.png", "./test/b.png", "b", "test\\b.png"])
def test_ids_of_another_case_slash_folder_or_suffix_match_where_none_is_the_same(tmp_path, asked):
    layout = submission.sample_layout(sample(tmp_path, f"ID,target\n{asked},0\n"), CLASSES)
    assert submission.align(["test/b.png"], layout, "s").tolist() == [0]


def test_a_missing_id_is_named_with_the_nearest_image(tmp_path):
    layout = submission.sample_layout(sample(tmp_path, "ID,target\na.png,0\nimage_0012.png,0\n"), CLASSES)
    with pytest.raises(
        DataError, match=r"1 of its IDs has no image \(image_0012.png, perhaps you mean 'Image_012.png'"
    ):
        submission.align(["a.png", "Image_012.png"], layout, "s.csv")


@pytest.mark.parametrize(("mark", "bom"), [(";", ""), ("\t", ""), ("|", ""), (",", "\ufeff"), (";", "\ufeff")])
def test_a_sample_with_another_delimiter_or_a_byte_order_mark_is_followed(tmp_path, mark, bom):
    path = sample(tmp_path, f"{bom}ID{mark}target\nb{mark}0\na{mark}0\n")
    layout = submission.sample_layout(path, CLASSES)
    submission.write(tmp_path / "out.csv", layout, PROBABILITIES[:2], CLASSES)
    assert (tmp_path / "out.csv").read_text() == f"ID{mark}target\nb{mark}2\na{mark}0\n"
    assert validation.faults(tmp_path / "out.csv", path) == []
    if mark != ",":
        (tmp_path / "comma.csv").write_text("ID,target\nb,2\na,0\n")
        (fault,) = validation.faults(tmp_path / "comma.csv", path)
        assert f"separated by ',' where the sample has {mark!r}" in fault


def test_the_id_column_of_a_sample_is_the_one_that_names_the_images(tmp_path):
    path = sample(tmp_path, "label,id\n0,TEST_1\n0,TEST_0\n")
    layout = submission.sample_layout(path, CLASSES, "img_path", ids=["TEST_0", "TEST_1"])
    assert (layout.id_column, layout.target, layout.ids) == ("id", "label", ("TEST_1", "TEST_0"))
