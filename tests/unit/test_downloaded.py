"""Inputs that were once read wrongly: names in other forms, folders that are no data, columns called otherwise."""

from __future__ import annotations

import os
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from config import load as config
from config.errors import DataError
from config.sections.data import Data
from data import folds, groups, look, sources
from data.audit import images as audit_images
from data.sources import packed, remote
from tests.unit.test_layouts import png, shards
from tests.unit.test_sources import listing, touch
from training.run import prepare


def labelled(root: Path, *names: str, header: str = "ID,target") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "train.csv").write_text(f"{header}\n" + "".join(f"{n},{'ab'[i % 2]}\n" for i, n in enumerate(names)))
    return root


@pytest.mark.parametrize(
    ("written", "file"),
    [
        ("0.jpg", "train/0.JPG"),
        ("train\\0.jpg", "train/0.jpg"),
        ("./train/0.jpg", "train/0.jpg"),
        (unicodedata.normalize("NFC", "사진_0.png"), "train/" + unicodedata.normalize("NFD", "사진_0.png")),
        (unicodedata.normalize("NFD", "é.png"), "train/" + unicodedata.normalize("NFC", "é.png")),
        ("0", "train_images/deep/0.png"),
        ("{root}/pictures/0.png", "pictures/0.png"),
        ("A/0.PNG", "images/a/0.png"),
        ("kind.of.blue", "train/kind.of.blue.webp"),
    ],
)
def test_an_id_means_its_file_in_whatever_form_it_is_written(written: str, file: str, tmp_path: Path) -> None:
    touch(tmp_path / file, tmp_path / "pictures/other.png")
    root = labelled(tmp_path, written.format(root=tmp_path), "pictures/other.png")
    assert sources.load(root).paths[0] == tmp_path / file


def test_an_id_without_image_names_the_nearest_one_and_the_folder_of_images(tmp_path: Path) -> None:
    touch(tmp_path / "train/cat_001.png", tmp_path / "train/b.png")
    with pytest.raises(DataError, match=r"1 of 2 IDs have no image.*cat_0001\.png, train/cat_001\.png is there"):
        sources.load(labelled(tmp_path, "cat_0001.png", "b.png"))


def test_a_label_that_is_a_missing_value_is_refused_with_its_line(tmp_path: Path) -> None:
    listing(tmp_path, "ID,target\na.png,x\nb.png,nan\nc.png,y\n", "a.png", "b.png", "c.png")
    with pytest.raises(DataError, match="line 3 has target 'nan', which is a missing value"):
        sources.load(tmp_path)


def test_a_column_that_is_asked_for_in_another_case_is_named(tmp_path: Path) -> None:
    listing(tmp_path, "id,target\na.png,x\nb.png,y\n", "a.png", "b.png")
    assert sources.load(tmp_path).id_column == "id"
    with pytest.raises(DataError, match=r"no column 'ID'.*perhaps you mean 'id'; set data.id_column"):
        sources.load(Data(root=tmp_path, id_column="ID"))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_of_any_separator_and_of_excel_are_read(separator: str, encoding: str, tmp_path: Path) -> None:
    text = separator.join(("image", "note", "label")) + "\n"
    text += "".join(separator.join((f"{i}.png", f"n{i}", "xy"[i % 2])) + "\n" for i in range(4))
    listing(tmp_path, text.encode(encoding), *(f"{i}.png" for i in range(4)), name="labels.csv")
    table = sources.load(tmp_path)
    assert (table.ids, table.class_names) == (["0.png", "1.png", "2.png", "3.png"], ("x", "y"))


def test_a_table_without_header_and_one_with_several_labels_an_image(tmp_path: Path) -> None:
    listing(tmp_path / "a", "0.png,cat\n1.png,dog\n2.png,cat\n", "0.png", "1.png", "2.png", name="labels.csv")
    assert sources.load(tmp_path / "a").class_names == ("cat", "dog")
    text = "image,x,y\n0.png,1,1\n1.png,0,1\n2.png,1,0\n"
    listing(tmp_path / "b", text, "0.png", "1.png", "2.png")
    with pytest.raises(DataError, match=r"line 2 has 2 ones among x, y.*several labels for an image"):
        sources.load(tmp_path / "b")


def test_a_label_column_that_is_not_clear_is_asked_for(tmp_path: Path) -> None:
    text = "image,colour,shape\n" + "".join(f"{i}.png,{'rg'[i % 2]},{'oq'[i // 4]}\n" for i in range(8))
    root = listing(tmp_path, text, *(f"{i}.png" for i in range(8)))
    with pytest.raises(DataError, match="several of its columns could be the label: 'colour', 'shape'"):
        sources.load(root)
    assert sources.load(Data(root=root, target_column="shape")).class_names == ("o", "q")
    assert sources.load(Data(root=root, target_column="shape")).columns["colour"] == list("rgrgrgrg")


def test_a_fold_column_gives_the_folds(tmp_path: Path) -> None:
    text = "image,label,fold\n" + "".join(f"{i}.png,{'xy'[i % 2]},{1 + i // 4}\n" for i in range(8))
    table = sources.load(listing(tmp_path, text, *(f"{i}.png" for i in range(8))))
    assert table.fold_of is not None and table.fold_of.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize("split", ["val", "valid", "Validation", "dev"])
def test_a_validation_split_validates_and_is_said(split: str, tmp_path: Path) -> None:
    touch(*(tmp_path / f"{s}/{c}/{i}.png" for s in ("train", split) for c in ("cat", "dog") for i in range(3)))
    table = sources.load(tmp_path)
    assert table.fold_of is not None and table.fold_of.tolist() == [-1] * 6 + [0] * 6
    assert table.ids[6] == f"{split}/cat/0.png" and "6 that validate" in table.summary[0]


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Test"),
        ("Training", "Testing"),
        ("seg_train", "seg_test"),
        ("train_images", "test_images"),
        ("cars_train", "cars_test"),
    ],
)
def test_split_folders_are_never_classes(names: tuple[str, str], tmp_path: Path) -> None:
    touch(*(tmp_path / f"{s}/{c}/{i}.png" for s in names for c in ("cat", "dog") for i in range(3)))
    assert sources.load(tmp_path).class_names == ("cat", "dog")
    assert len(sources.load(tmp_path).ids) == 6 == len(sources.load_test(tmp_path).ids)


def test_classes_that_are_called_as_splits_are_classes_by_content_or_by_name(tmp_path: Path) -> None:
    touch(*(tmp_path / f"a/{c}/{i}.png" for c in ("bus", "car", "train") for i in range(3)))
    assert sources.load(tmp_path / "a").class_names == ("bus", "car", "train")
    touch(*(tmp_path / f"b/{c}/{i}.png" for c in ("test", "train") for i in range(3)))
    with pytest.raises(DataError, match="no class folders, but 3 images"):
        sources.load(tmp_path / "b")
    table = sources.load(Data(root=tmp_path / "b", classes=("test", "train")))
    assert table.class_names == ("test", "train") and sources.test_split(Data(root=tmp_path / "a")) is None
    touch(*(tmp_path / f"c/{c}/{i}.png" for c in ("train_station", "test_tube", "pen") for i in range(3)))
    assert sources.load(tmp_path / "c").class_names == ("pen", "test_tube", "train_station")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ("cat/train/0.png", "cat/test/0.png", "dog/train/0.png", "dog/test/0.png"),
            "class folders hold split folders",
        ),
        (("val/cat/0.png", "test/cat/0.png"), "look like splits, and none is for training"),
        (("train/cat/0.png", "train_images/dog/0.png"), "are both training folders"),
        (("images/0.png", "annotations/0.png"), "images/ would be classes, and annotations/ names none"),
        (("train/a/0.png", "train/b/0.png", "val/a/0.png", "val/c/0.png"), "'c' is no class of"),
        (("cat.0.png", "cat.1.png", "dog.0.png", "dog.1.png"), r"set data.label_pattern '\^\(\.\+\)"),
        (("photos.zip",), "photos.zip; unpack it first"),
    ],
)
def test_layouts_that_would_train_on_the_wrong_thing_are_refused(files: tuple, said: str, tmp_path: Path) -> None:
    touch(*(tmp_path / file for file in files))
    with pytest.raises(DataError, match=said):
        sources.load(tmp_path)


def test_what_is_passed_over_is_counted_in_a_line(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{c}/{i}.png" for c in ("cat", "dog", "__background__") for i in range(3)))
    touch(tmp_path / "cat/4.jxl", tmp_path / "cat/nosuffix", tmp_path / "loose.png", tmp_path / "cat/.hidden.png")
    table = sources.load(tmp_path)
    assert table.class_names == ("__background__", "cat", "dog")
    (line,) = [line for line in table.summary if line.startswith("left out")]
    assert "1 image in the folder itself" in line and "1 file .jxl" in line and "1 file without suffix" in line
    assert "hidden" not in line


def test_runs_and_audits_in_the_folder_are_no_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(*(tmp_path / f"{c}/{i}.png" for c in ("cat", "dog") for i in range(3)))
    touch(*(tmp_path / f"runs/1/{name}" for name in ("config.yaml", "environment.json", "plots/loss.png")))
    touch(*(tmp_path / f"audit/{name}" for name in ("audit.csv", "audit.html")))
    table = sources.load(tmp_path)
    assert table.class_names == ("cat", "dog") and "Tandem's own audit/, runs/" in table.summary[-1]
    assert sources.load(Path()).summary == table.summary


def test_names_with_blanks_and_in_nfd_come_back_from_folds_and_groups(tmp_path: Path) -> None:
    accent = unicodedata.normalize("NFD", "café")
    touch(*(tmp_path / f"data/{c}/{i}.png" for c in ("cat ", accent) for i in range(4)))
    table = sources.load(tmp_path / "data")
    assert table.class_names == ("café", "cat")
    made = folds.make(table.labels, "holdout", val_fraction=0.5)
    folds.write(tmp_path / "folds.csv", table, made)
    np.testing.assert_array_equal(folds.read(tmp_path / "folds.csv", sources.load(tmp_path / "data")), made)
    (tmp_path / "groups.csv").write_text(f"ID,group\n{accent}/0.png,g\n{accent}/1.png,g\n", encoding="utf-8")
    assert len(set(groups.read(table, "group", tmp_path / "groups.csv").tolist())) == len(table.ids) - 1


def test_folds_and_groups_may_be_called_by_the_id_column_of_the_table(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(4)]
    table = sources.load(
        listing(tmp_path, "image_id,label\n" + "".join(f"{n},{'xy'[i % 2]}\n" for i, n in enumerate(names)), *names)
    )
    (tmp_path / "f.csv").write_text("image_id,fold\n" + "".join(f"{n},{i // 2}\n" for i, n in enumerate(names)))
    assert folds.read(tmp_path / "f.csv", table).tolist() == [0, 0, 1, 1]
    (tmp_path / "g.csv").write_text("image_id,group\n0.png,g\n3.png,g\n")
    assert groups.read(table, "group", tmp_path / "g.csv").tolist() == [0, 1, 2, 0]


def test_file_names_that_are_no_utf8_can_be_written_and_printed(tmp_path: Path) -> None:
    for label in (b"cat", b"d\xf6g"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + label)).mkdir()
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + label + b"/caf\xe9.png")).write_bytes(png())
    table = sources.load(tmp_path)
    assert table.class_names == ("cat", "d\\xf6g") and table.ids == ["cat/caf\\xe9.png", "d\\xf6g/caf\\xe9.png"]
    assert all(path.read_bytes() == png() for path in table.paths)
    look.text(Data(root=tmp_path), str(tmp_path)).encode()


def test_numbers_that_are_written_in_two_ways_are_one_class_to_the_audit() -> None:
    split = audit_images.Split("train", ["a", "b", "c"], [], ["1", "1.0", "10"])
    (alias,) = [finding for finding in audit_images.classes(split, least=0) if finding.kind == "alias"]
    assert "'1' and '1.0' are the same number" in alias.detail


def test_links_within_the_data_set_are_followed_and_others_by_a_setting(tmp_path: Path) -> None:
    touch(tmp_path / "data/all/0.png", tmp_path / "data/all/1.png", tmp_path / "elsewhere/2.png")
    root = tmp_path / "data"
    (root / "cat").mkdir()
    (root / "cat/0.png").symlink_to(root / "all/0.png")
    (root / "dog").symlink_to(root / "all")
    (root / "dog/again").symlink_to(root / "all")  # a folder in itself
    assert sources.load(root).ids == ["all/0.png", "all/1.png", "cat/0.png", "dog/0.png", "dog/1.png"]
    (root / "cow").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"cow: is a link out of .*data.follow_links"):
        sources.load(root)
    assert "cow/2.png" in sources.load(Data(root=root, follow_links=True)).ids


def test_the_test_table_may_have_columns_of_its_own(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{s}/{i}.png" for s in ("train", "test") for i in range(2)))
    (tmp_path / "train.csv").write_text("img_path,label\n./train/0.png,cat\n./train/1.png,dog\n")
    (tmp_path / "test.csv").write_text("id,img_path\nTEST_1,./test/1.png\nTEST_0,./test/0.png\n")
    (tmp_path / "sample_submission.csv").write_text("id,label\nTEST_0,cat\nTEST_1,cat\n")
    test = sources.test_split(Data(root=tmp_path, id_column="img_path", target_column="label"))
    assert test is not None and test.ids == ["TEST_1", "TEST_0"] and test.id_column == "id"
    assert test.paths == [tmp_path / "test/1.png", tmp_path / "test/0.png"]


def test_a_class_that_only_validates_is_refused_unless_other_folds_are_drawn(tmp_path: Path) -> None:
    rows = [("x", "train"), ("y", "train"), ("x", "train"), ("y", "val"), ("z", "val"), ("z", "val")]
    text = "image,label,split\n" + "".join(f"{i}.png,{label},{split}\n" for i, (label, split) in enumerate(rows))
    root = listing(tmp_path, text, *(f"{i}.png" for i in range(6)))
    words = ["--data.root", str(root), "--folds.val_fraction", "0.5"]
    with pytest.raises(DataError, match=r"class 'z' is validated by fold 0.*set folds.strategy holdout"):
        prepare.draw_folds(config.parse(words, "test"), sources.load(root))
    drawn = prepare.draw_folds(config.parse([*words, "--folds.strategy", "holdout"], "test"), sources.load(root))
    assert sorted(drawn.tolist()) == [-1, -1, -1, 0, 0, 0]


def test_images_without_a_label_are_counted(tmp_path: Path) -> None:
    shards(tmp_path)
    with tarfile.open(tmp_path / "000.tar", "a") as tar:
        touch(tmp_path / "alone.png")
        tar.add(tmp_path / "alone.png", "alone.png")
    table = sources.load(tmp_path / "000.tar")
    assert len(table.ids) == 3 and any("1 image without a label" in line for line in table.summary)


def test_a_table_may_lie_outside_of_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(*(tmp_path / f"data/pictures/{i}.png" for i in range(2)))
    (tmp_path / "mine.csv").write_text("image,label\n0.png,x\n1.png,y\n")
    monkeypatch.chdir(tmp_path)
    for table in (Path("mine.csv"), tmp_path / "mine.csv"):
        found = sources.load(Data(root=tmp_path / "data", table=table, on_bad_image="skip"))
        assert found.paths == [tmp_path / f"data/pictures/{i}.png" for i in range(2)]
    (tmp_path / "mine.csv").write_text("image,label\n0.png,x\n1.png,y\ngone.png,y\n")
    found = sources.load(Data(root=tmp_path / "data", table=Path("mine.csv"), on_bad_image="skip"))
    assert found.paths[2] == tmp_path / "data/gone.png"


def test_images_inside_a_shard_read_as_files(tmp_path: Path) -> None:
    import pickle

    shards(tmp_path)
    table = sources.load(tmp_path)
    first = table.paths[0]
    assert isinstance(first, packed.Part) and first.read_bytes() == png(0) and first.exists()
    assert first.stat().st_size == len(png(0)) and first.suffix == ".png"
    again = pickle.loads(pickle.dumps(first))
    assert again == first and again.read_bytes() == png(0) and hash(again) == hash(first)
    assert first.resolve().read_bytes() == png(0) and len({str(path) for path in table.paths}) == 6


def test_shards_at_a_url_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    shards(tmp_path)
    memory = fsspec.filesystem("memory")
    for shard in range(2):
        memory.pipe(f"/shards/{shard:03d}.tar", (tmp_path / f"{shard:03d}.tar").read_bytes())
    root = Path("memory://shards/{000..001}.tar")
    table = sources.load(root)
    memory.rm("/shards", recursive=True)
    assert sources.load(root).ids == table.ids and len(table.ids) == 6
    with pytest.raises(DataError, match="cannot be fetched"):
        sources.load(Path("memory://shards/9.tar"))
    assert remote.expand("s3://b/{a,b}/{08..10}.tar")[3:5] == ["s3://b/b/08.tar", "s3://b/b/09.tar"]


def test_a_damaged_shard_and_arrays_of_another_kind_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/0.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(DataError, match=r"0.tar: is a damaged or packed shard"):
        sources.load(tmp_path / "a")
    with tarfile.open(tmp_path / "folders.tar", "w") as tar:
        touch(tmp_path / "cat/0.png")
        tar.add(tmp_path / "cat/0.png", "cat/0.png")
    with pytest.raises(DataError, match="unpack an archive of class folders first"):
        sources.load(tmp_path / "folders.tar")
    np.savez(tmp_path / "x.npz", train_images=np.zeros((2, 8, 8), np.uint8), train_labels=np.eye(2, dtype=np.uint8))
    with pytest.raises(DataError, match="several labels for an image are not supported"):
        sources.load(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", images=np.zeros(3))
    with pytest.raises(DataError, match="its arrays are images; wanted: train_images"):
        sources.load(tmp_path / "y.npz")
