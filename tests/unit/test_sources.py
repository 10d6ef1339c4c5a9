from pathlib import Path

import numpy as np
import pytest

from config.errors import DataError
from config.sections.data import Data
from data import sources


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"an image, for all that the index knows")


def listing(root: Path, text: str | bytes, *images: str, name: str = "train.csv") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    touch(*(root / image for image in images))
    return root


def test_a_csv_is_read_in_its_own_order_with_ids_with_and_without_suffix(tmp_path):
    root = listing(
        tmp_path, "ID,target\nb.jpg,dog\na,cat\nsub/c,dog\n", "train/a.png", "train/b.jpg", "train/sub/c.webp"
    )
    table = sources.load(root)
    assert table.ids == ["b.jpg", "a", "sub/c"]
    assert table.paths == [root / "train/b.jpg", root / "train/a.png", root / "train/sub/c.webp"]
    assert table.class_names == ("cat", "dog")
    np.testing.assert_array_equal(table.labels, [1, 0, 1])
    assert table.labels.dtype == np.int64 and table.root == root


def test_a_csv_of_excel_with_a_mark_blanks_more_columns_and_images_beside_it(tmp_path):
    text = b"\xef\xbb\xbffile ,note,label\r\n a.png, x,1\r\n\r\nb.png,y , 2\r\n"
    table = sources.load(Data(root=listing(tmp_path, text, "a.png", "b.png"), id_column="file", target_column="label"))
    assert table.ids == ["a.png", "b.png"] and table.class_names == ("1", "2")


def test_integer_class_names_are_sorted_by_value_and_others_by_text():
    assert sources.sort_classes(["10", "9", "0", "-1"]) == ("-1", "0", "9", "10")
    assert sources.sort_classes(["10", "9", "x"]) == ("10", "9", "x")


@pytest.mark.parametrize("inner", ["", "train"])
def test_class_folders_are_searched_through_and_other_files_left_alone(tmp_path, inner):
    base = tmp_path / inner
    touch(base / "dog/2.jpg", base / "dog/deep/1.PNG", base / "cat/1.jpeg")
    touch(base / "dog/notes.txt", base / "cat/._1.jpeg", base / ".git/x.png", base / "readme.md")
    if inner:
        touch(tmp_path / "test/dog/never.jpg")
    table = sources.load(tmp_path)
    assert table.ids == ["cat/1.jpeg", "dog/2.jpg", "dog/deep/1.PNG"]
    assert table.class_names == ("cat", "dog") and table.labels.tolist() == [0, 1, 1]


GOOD = "ID,target\na.png,x\nb.png,y\n"
FAULTY = {
    "not UTF-8": ("ID,target\na.png,x\nb.png,caf\xe9\n".encode("latin-1"), r"line 3 is not UTF-8.*save"),
    "empty": ("", r"train.csv: is empty"),
    "no rows": ("ID,target\n", r"no rows"),
    "no column": ("ID\na.png\nb.png\n", r"no column 'target'.*'ID'.*data.target_column"),
    "a column twice": ("ID,target,ID\na.png,x,1\n", r"'ID' occurs twice"),
    "a short row": ("ID,target\na.png,x\nb.png\n", r"line 3 has 1 cell,"),
    "no target": ("ID,target\na.png,x\nb.png,\n", r"line 3 has no 'target'"),
    "a NUL or an open quote": ('ID,target\na.png,"x\n', r"not valid CSV"),
    "duplicate IDs": (GOOD + "a.png,x\n", r"'a.png' on lines 2 and 4"),
    "one file by two IDs": (GOOD + "a,x\n", r"'a.png' and 'a' are both"),
    "no file": (GOOD + "c.png,x\nd.png,y\n", r"2 of 4 IDs have no image.*c.png, d.png.*add the files"),
    "one class": ("ID,target\na.png,x\nb.png,x\n", r"only one class, 'x'"),
    "two files for an ID": ("ID,target\na.png,x\ntwin,y\n", r"'twin' fits twin.jpg, twin.png"),
    "a way up": (GOOD + "../secret.png,x\n", r"'\.\./secret.png' leads out"),
    "a way up inside": (GOOD + "sub/../../../secret.png,x\n", r"leads out"),
    "a Windows way up": (GOOD + "..\\secret.png,x\n", r"leads out"),
    "a drive": (GOOD + "C:\\secret.png,x\n", r"leads out"),
    "an absolute path": (GOOD + "/etc/passwd,x\n", r"'/etc/passwd' leads out"),
    "a link out": (GOOD + "link.png,x\n", r"link.png: is a link out of"),
    "a linked folder": (GOOD + "door/secret.png,x\n", r"secret.png: is a link out of"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_csv_is_one_line_that_names_file_and_remedy(tmp_path, fault):
    text, expected = FAULTY[fault]
    touch(tmp_path / "outside/secret.png")
    root = listing(tmp_path / "root", text, "train/a.png", "train/b.png", "train/twin.png", "train/twin.jpg")
    (root / "train/link.png").symlink_to(tmp_path / "outside/secret.png")
    (root / "train/door").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=expected) as caught:
        sources.load(root)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value) and ";" in str(caught.value)


def test_a_data_set_that_lies_behind_a_link_as_a_whole_is_fine(tmp_path):
    listing(tmp_path / "disk", GOOD, "train/a.png", "train/b.png")
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    assert len(sources.load(tmp_path / "root").ids) == 2


def test_folders_that_cannot_be_trained_on_are_refused(tmp_path):
    def refuse(expected: str, root: Path) -> None:
        with pytest.raises(DataError, match=expected):
            sources.load(root)

    refuse("does not exist", tmp_path / "nowhere")
    refuse("is empty", tmp_path)
    touch(tmp_path / "file.png")
    refuse("is not a folder", tmp_path / "file.png")
    refuse("no class folders", tmp_path)
    touch(tmp_path / "cat/1.png")
    refuse("only one class, 'cat'", tmp_path)
    (tmp_path / "dog").mkdir()
    refuse("dog: a class folder without images", tmp_path)
    (tmp_path / "dog/out.png").symlink_to("/etc/hostname")
    refuse("out.png: is a link out of", tmp_path)


def test_test_images_from_a_csv_a_competition_folder_and_plain_folders(tmp_path):
    listing(tmp_path, "ID\nb\na.png\n", "test/a.png", "test/b.jpg", "train/c.png", name="test.csv")
    for source in (tmp_path, tmp_path / "test.csv"):
        table = sources.load_test(source)
        assert table.ids == ["b", "a.png"] and table.labels.tolist() == [-1, -1] and table.class_names == ()
        assert table.paths == [tmp_path / "test/b.jpg", tmp_path / "test/a.png"]
    (tmp_path / "test.csv").unlink()
    assert sources.load_test(tmp_path).ids == ["a.png", "b.jpg"]
    touch(tmp_path / "test/deep/0.png")
    assert sources.load_test(tmp_path / "test").ids == ["a.png", "b.jpg", "deep/0.png"]
    with pytest.raises(DataError, match="holds no images"):
        (tmp_path / "bare").mkdir()
        sources.load_test(tmp_path / "bare")
    with pytest.raises(DataError, match="does not exist"):
        sources.load_test(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"nowhere.csv: cannot be read"):
        sources.load_test(tmp_path / "nowhere.csv")
