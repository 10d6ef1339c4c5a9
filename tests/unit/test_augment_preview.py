"""`python -m data preview`: the picture, and what is said when it cannot be made."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from data import __main__ as command
from data.augment import transforms
from data.decode.image import decode
from data.rng import philox
from tests.unit.pictures import photograph


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(3):
        Image.fromarray(photograph(90 + 10 * i, 120)).save(root / f"photo_{i}.png")
    return root


def preview(root, out, *more: str) -> int:
    return command.main(["preview", "--root", str(root), "--out", str(out), "--size", "48", *more])


def cells(path, rows: int, columns: int) -> np.ndarray:
    """uint8 `[rows, columns, S, S, 3]`, where the sheet has them: cells end at its right and lower edge."""
    sheet = np.asarray(Image.open(path))
    pitch = (sheet.shape[1] - 6) // columns
    side, line = pitch - 6, (sheet.shape[0] - 32) // rows - pitch
    tops = [26 + r * (line + pitch) + line for r in range(rows)]
    lefts = [6 + c * pitch for c in range(columns)]
    return np.array([[sheet[t : t + side, x : x + side] for x in lefts] for t in tops])


def test_the_sheet_shows_the_originals_and_then_what_training_sees(photos, tmp_path, capsys):
    out = tmp_path / "new" / "sheet.png"
    assert preview(photos, out, "--augment", "hard", "--columns", "4", "--seed", "3") == 0
    assert capsys.readouterr().out.strip() == str(out)
    found = cells(out, 3, 5)
    assert found.shape[2] == 144  # 48 pixels, three times as large
    section = transforms.Augment(level="hard")
    transform = transforms.train_transform(section, transforms.Preprocessing(size=48))
    for row in range(3):
        image = decode(photos / f"photo_{row}.png")
        assert np.abs(found[row, 0][60:80, 60:80].astype(int).mean() - image.mean()) < 80
        seen = transform(image, philox(3, "augment", 0, row, 0))
        np.testing.assert_array_equal(found[row, 1][1::3, 1::3], seen)
    again = tmp_path / "again.png"
    preview(photos, again, "--augment", "hard", "--columns", "4", "--seed", "3")
    assert again.read_bytes() == out.read_bytes()


def test_switches_and_the_ramp_reach_the_picture(photos, tmp_path):
    plain, off = tmp_path / "plain.png", tmp_path / "off.png"
    preview(photos, plain, "--augment", "none", "--columns", "2", "--train.epochs", "2")
    options = (
        "--columns",
        "2",
        "--train.epochs",
        "2",
        "--augment.off_epochs",
        "1",
        "--augment.ops",
        "{grayscale: true}",
    )
    preview(photos, off, "--augment", "hard", *options)
    one, other = cells(plain, 3, 3), cells(off, 3, 3)
    np.testing.assert_array_equal(one[:, 2], other[:, 2])
    assert (one[:, 1] != other[:, 1]).any()


def test_each_operation_can_be_shown_alone(photos, tmp_path):
    out = tmp_path / "ops.png"
    switches = ("--augment.ops", "{grayscale: true, rotate90: true}")
    assert preview(photos, out, "--augment", "none", "--ops", *switches) == 0
    found = cells(out, 3, 3)
    grey = found[:, 2].astype(int)
    assert np.ptp(grey, axis=-1).max() == 0 and np.ptp(found[:, 1].astype(int), axis=-1).max() > 50


def test_a_data_set_is_labelled_and_its_test_images_are_left_out(digits, tmp_path):
    out = tmp_path / "digits.png"
    assert command.main(["preview", "--root", str(digits), "--out", str(out), "--size", "32", "--images", "2"]) == 0
    assert Image.open(out).height == 32 + 2 * (20 + 128 + 6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--augment", "hardest"], "augment.level: found 'hardest'"),
        (["--augment.ops", "{erosoin: true}"], "did you mean erosion?"),
        (["--out", "sheet.txt"], "sheet.txt: a picture's name ends in .png"),
        (["--augment", "none", "--ops"], "let no operation act"),
        (["--root", "nowhere"], "nowhere: does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(photos, tmp_path, capsys, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    assert preview(photos, "sheet.png", *options) in (1, 2)
    error = capsys.readouterr().err
    assert expected in error and len(error.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
