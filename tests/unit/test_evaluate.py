"""`infer evaluate`: scores as scikit-learn's on every kind of source, what is refused, the files, the page."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image
from pyarrow import parquet
from sklearn import metrics as sklearn

import infer
from config.errors import DataError
from data import sources
from infer.__main__ import main
from infer.evaluation.scoring import Evaluation
from models import imagenet
from models.registry import TABLES
from tests.unit import members

NAMES = tuple("lkjihgfedcba")  # not in the order of the data set's
COUNT = 60


@pytest.fixture(scope="module")
def labelled() -> tuple[np.ndarray, np.ndarray]:
    """Pixels of sixty images, and the class letter of each."""
    draw = np.random.default_rng(5)
    letters = np.array([NAMES[number % 12] for number in draw.permutation(COUNT)])
    return draw.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8), letters


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return members.checkpoint(tmp_path_factory.mktemp("run") / "best", of=members.card(NAMES), sharpness=6.0)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def put(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(pixels))


def class_folders(root: Path, pixels: np.ndarray, letters: np.ndarray) -> Path:
    for number, (image, letter) in enumerate(zip(pixels, letters, strict=True)):
        put(root / letter / f"{number:02}.png", image)
    return root


def folder(root: Path, pixels: np.ndarray, letters: np.ndarray) -> Path:
    return class_folders(root, pixels, letters)


def splits(root: Path, pixels: np.ndarray, letters: np.ndarray) -> Path:
    class_folders(root / "train", pixels[::-1], letters)
    class_folders(root / "test", pixels, letters)
    return root


def only_test(root: Path, pixels: np.ndarray, letters: np.ndarray) -> Path:
    """A folder of splits of which only test is there."""
    class_folders(root / "test", pixels, letters)
    return root


def table(root: Path, pixels: np.ndarray, letters: np.ndarray) -> Path:
    for number, image in enumerate(pixels):
        put(root / "images" / f"{number:02}.png", image)
    rows = "".join(f"{number:02}.png,{letter},test\n" for number, letter in enumerate(letters))
    put(root / "images" / "other.png", pixels[0])
    (root / "labels.csv").write_text(f"file_name,label,split\nother.png,a,train\n{rows}")
    return root


def labels_in_both_tables(root: Path, pixels: np.ndarray, letters: np.ndarray) -> Path:
    """Train.csv and Test.csv with labels in both, as GTSRB has them."""
    for number, image in enumerate(pixels):
        put(root / "train" / f"{number:02}.png", image[::-1])
        put(root / "test" / f"{number:02}.png", image)
    for split in ("train", "test"):
        lines = "".join(f"{split}/{number:02}.png,{letter}\n" for number, letter in enumerate(letters))
        (root / f"{split}.csv").write_text(f"path,class\n{lines}")
    return root


def one_parquet(root: Path, pixels: np.ndarray, letters: np.ndarray) -> Path:
    root.mkdir()
    rows = {"image": [{"bytes": png(image), "path": None} for image in pixels], "label": letters.tolist()}
    parquet.write_table(pa.table(rows), root / "test-00000-of-00001.parquet")
    parquet.write_table(pa.table(rows).slice(0, 3), root / "train-00000-of-00001.parquet")
    return root


def shards(root: Path, pixels: np.ndarray, letters: np.ndarray) -> Path:
    root.mkdir()
    with tarfile.open(root / "000.tar", "w") as file:
        for number, (image, letter) in enumerate(zip(pixels, letters, strict=True)):
            for suffix, content in (("png", png(image)), ("cls", letter.encode())):
                info = tarfile.TarInfo(f"{number:02}.{suffix}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return root


SOURCES = (folder, splits, only_test, table, labels_in_both_tables, one_parquet, shards)
Source = Callable[[Path, np.ndarray, np.ndarray], Path]


def evaluated(best: Path, root: Path, *more: str) -> int:
    return main(["evaluate", "--member", str(best), "--data.root", str(root), *more])


def probabilities_of(best: Path, pixels: np.ndarray) -> np.ndarray:
    with infer.load(best) as model:
        return model.predict(list(pixels)).probabilities.astype(np.float64)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_scores_are_scikit_learns_whatever_the_source(source: Source, best, labelled, tmp_path: Path) -> None:
    pixels, letters = labelled
    root = source(tmp_path / "data", pixels, letters)
    with infer.load(best) as model:
        found = infer.evaluate(model, root)
    expected = probabilities_of(best, pixels)
    targets = np.array([NAMES.index(letter) for letter in letters])
    predicted = expected.argmax(axis=1)
    every = range(12)
    assert found.accuracy == pytest.approx(sklearn.accuracy_score(targets, predicted))
    assert found.macro_f1 == pytest.approx(sklearn.f1_score(targets, predicted, average="macro"))
    assert found.log_loss == pytest.approx(sklearn.log_loss(targets, expected, labels=every), rel=1e-5)
    assert found.top5 == pytest.approx(sklearn.top_k_accuracy_score(targets, expected, k=5, labels=every))
    np.testing.assert_array_equal(found.confusion, sklearn.confusion_matrix(targets, predicted, labels=every))
    wanted = sklearn.precision_recall_fscore_support(targets, predicted, labels=every, zero_division=0)
    columns = [[getattr(c, name) for c in found.per_class] for name in ("precision", "recall", "f1", "images")]
    np.testing.assert_allclose(columns, wanted)
    assert [c.name for c in found.per_class] == list(NAMES) and 0 < found.accuracy < 1 and found.top5 > found.accuracy
    low, high = found.intervals["accuracy"].low, found.intervals["accuracy"].high
    assert low < found.accuracy < high


def test_arrays_and_their_splits(best, labelled, tmp_path: Path) -> None:
    pixels, letters = labelled
    names = np.array(sorted(NAMES))
    labels = np.searchsorted(names, letters)
    arrays = {"train_images": pixels[::-1], "train_labels": labels, "test_images": pixels, "test_labels": labels}
    np.savez(tmp_path / "x.npz", **arrays)
    numbered = members.checkpoint(tmp_path / "numbered", of=members.card(tuple(map(str, range(12)))), sharpness=6.0)
    expected = probabilities_of(numbered, pixels).argmax(axis=1)
    with infer.load(numbered) as model:
        found = infer.evaluate(model, tmp_path / "x.npz")
        train = infer.evaluate(model, tmp_path / "x.npz", "train")
    assert found.split == "test" and found.accuracy == pytest.approx((expected == labels).mean())
    assert train.split == "train" and train.accuracy != found.accuracy
    np.savez(tmp_path / "y.npz", **{name: arrays[name] for name in arrays if name != "test_labels"})
    with infer.load(numbered) as model:
        assert infer.evaluate(model, tmp_path / "y.npz").split == "all", "a test split without labels is no choice"
        with pytest.raises(DataError, match=r"no image of its test split has a label .*train"):
            infer.evaluate(model, tmp_path / "y.npz", "test")


def test_without_test_labels_the_validation_split_is_taken_and_all_are_both(best, labelled, tmp_path: Path) -> None:
    pixels, letters = labelled
    for name, part in (("train", slice(0, 36)), ("val", slice(36, None))):
        class_folders(tmp_path / "data" / name, pixels[part], letters[part])
    put(tmp_path / "data" / "test" / "x.png", pixels[0])
    with infer.load(best) as model:
        found = {split: infer.evaluate(model, tmp_path / "data", split) for split in (None, "train", "val", "all")}
        for split in ("test", "val"):
            with pytest.raises(DataError, match=f"no image of its {split} split has a label"):
                infer.evaluate(model, tmp_path / "data" / "train", split)
    assert {split: (one.split, len(one.ids)) for split, one in found.items()} == {
        **{None: ("val", 24), "train": ("train", 36), "val": ("val", 24), "all": ("all", COUNT)}
    }
    hits = 24 * found["val"].accuracy + 36 * found["train"].accuracy
    assert found["all"].accuracy == pytest.approx(hits / COUNT)


def test_metrics_and_predictions_files_agree_with_what_is_printed(best, labelled, tmp_path: Path, capsys) -> None:
    pixels, letters = labelled
    root, out = folder(tmp_path / "data", pixels, letters), tmp_path / "out"
    assert evaluated(best, root, "--out", str(out)) == 0
    printed = capsys.readouterr().out
    said = json.loads((out / "metrics.json").read_text())
    assert f"accuracy    {said['accuracy']:.4f}" in printed and f"top-5       {said['top5']:.4f}" in printed
    assert "60 labelled images, split all" in printed and "note: this is no test split" in printed
    with np.load(out / "predictions.npz") as file:
        arrays = dict(file)
    np.testing.assert_array_equal(arrays["predicted"], arrays["probabilities"].argmax(axis=1))
    assert said["accuracy"] == pytest.approx((arrays["predicted"] == arrays["targets"]).mean())
    assert said["images"] == COUNT and len(said["per_class"]) == 12 and said["unreadable"] == {}
    bins = said["reliability"]
    gaps = [n * abs(c - a) for n, c, a in zip(*bins.values(), strict=True) if n]
    assert said["ece"] == pytest.approx(sum(gaps) / COUNT) and sum(bins["images"]) == COUNT
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert [row["ID"] for row in rows] == arrays["ids"].tolist() and rows[0]["ID"].startswith("a/")
    assert [row["target"] for row in rows] == [name[0] for name in arrays["ids"]]
    assert np.mean([row["target"] == row["predicted"] for row in rows]) == pytest.approx(said["accuracy"])
    losses = [-np.log(float(row["target_probability"])) for row in rows]
    assert np.mean(losses) == pytest.approx(said["log_loss"], rel=1e-5)
    counts = list(csv.DictReader((out / "confusion.csv").open()))
    assert sum(int(row["images"]) for row in counts) == COUNT
    assert sum(int(row["images"]) for row in counts if row["target"] == row["predicted"]) / COUNT == said["accuracy"]
    for name in ("confusion.png", "reliability.png"):
        assert Image.open(out / "plots" / name).width > 300
    page = (out / "report.html").read_text()
    assert f"<b>{said['accuracy']:.4f}</b>" in page and "default-src 'none'" in page and "data:image/jpeg" in page
    assert evaluated(best, root, "--out", str(out)) == 2
    assert "is not empty, and nothing is overwritten" in capsys.readouterr().err


def test_an_ensemble_with_views_aliases_and_multipliers(labelled, tmp_path: Path) -> None:
    pixels, letters = labelled
    root = folder(tmp_path / "data", pixels, letters)
    paths = [members.checkpoint(tmp_path / name, seed, members.card(NAMES)) for seed, name in enumerate("xy")]
    file = tmp_path / "ensemble.yaml"
    whole = {
        "views": ["flip"],
        "members": [{"path": path.name, "weight": weight} for path, weight in zip(paths, (0.7, 0.3), strict=True)],
        "class_multipliers": {"a": 30.0},
        "aliases": [["b", "c"]],
    }
    file.write_text(yaml.safe_dump(whole))
    with infer.load(file) as model:
        found = infer.evaluate(model, root)
        probabilities = model.predict(list(pixels)).probabilities.astype(np.float64)
        alone = [one.predict(list(pixels)).probabilities.argmax(axis=1) for one in model.members()]
    place = {name: NAMES.index("c" if name == "b" else name) for name in NAMES}  # c stands first among the members'
    merged = probabilities.copy()
    merged[:, place["c"]] += merged[:, NAMES.index("b")]
    merged[:, NAMES.index("b")] = 0
    targets = np.array([place[letter] for letter in letters])
    weighed = merged * np.where(np.array(NAMES) == "a", 30.0, 1.0)
    assert found.accuracy == pytest.approx((weighed.argmax(axis=1) == targets).mean())
    assert (weighed.argmax(axis=1) != merged.argmax(axis=1)).any()
    assert found.log_loss == pytest.approx(-np.log(merged[np.arange(COUNT), targets]).mean(), rel=1e-5)
    same = [np.array([place[NAMES[number]] for number in each]) == targets for each in alone]
    assert [one.accuracy for one in found.members] == pytest.approx([each.mean() for each in same])
    assert found.views == ("original", "hflip")


def test_a_data_set_of_some_classes_is_judged_on_those(best, labelled, tmp_path: Path) -> None:
    pixels, letters = labelled
    some = np.isin(letters, list("abc"))
    root = folder(tmp_path / "data", pixels[some], letters[some])
    with infer.load(best) as model:
        found = infer.evaluate(model, root)
    targets = np.array([NAMES.index(letter) for letter in letters[some]])
    predicted = probabilities_of(best, pixels[some]).argmax(axis=1)
    wanted = sklearn.f1_score(targets, predicted, average="macro", labels=np.unique(targets))
    assert found.intervals["macro_f1"].low <= found.macro_f1 <= found.intervals["macro_f1"].high
    assert found.macro_f1 == pytest.approx(wanted) and len(found.shown) == len(set(targets) | set(predicted)) < 12


@pytest.mark.parametrize("policy", ["skip", "partial", "error"])
def test_damaged_images_are_told_and_count_nowhere(policy, best, labelled, tmp_path: Path, capsys) -> None:
    pixels, letters = labelled
    root = folder(tmp_path / "data", pixels[:20], letters[:20])
    files = sorted(root.rglob("*.png"))
    files[3].write_bytes(b"no image")
    Image.fromarray(pixels[0]).resize((64, 64)).save(files[4].with_suffix(".jpg"), quality=95)
    whole = files[4].with_suffix(".jpg").read_bytes()
    files[4].unlink()
    files[4].with_suffix(".jpg").write_bytes(whole[: len(whole) * 2 // 3])
    out = tmp_path / "out"
    code = evaluated(best, root, "--out", str(out), "--on_bad_image", policy)
    captured = capsys.readouterr()
    if policy == "error":
        assert code == 1 and files[3].name in captured.err and not out.exists()
        return
    said = json.loads((out / "metrics.json").read_text())
    lost = 1 if policy == "partial" else 2
    assert code == 0 and said["images"] == 20 - lost and len(said["unreadable"]) == lost
    unreadable = "1 unreadable image" if lost == 1 else "2 unreadable images"
    assert f"warning: {unreadable} left out of the scores; the first: " in captured.out
    assert ("truncated images: 1, predicted as far as they go" in captured.out) == (policy == "partial")
    assert files[3].name in next(iter(said["unreadable"].values()))
    assert f"{unreadable} left out of the scores" in (out / "report.html").read_text()


def test_images_of_a_table_that_are_gone_count_as_unreadable(best, labelled, tmp_path: Path) -> None:
    pixels, letters = labelled
    root = table(tmp_path / "data", pixels, letters)
    (root / "labels.csv").write_text((root / "labels.csv").read_text().replace(",test", ",train"))
    (root / "images" / "07.png").unlink()
    with infer.load(best) as model:
        assert list(infer.evaluate(model, root).unreadable) == ["07.png"]
        with pytest.raises(DataError, match=r"07\.png"):
            infer.evaluate(model, root, on_bad_image="error")


def _unknown(root: Path, pixels: np.ndarray) -> list[str]:
    for number, name in enumerate(("a", "b", "zebra", "yak")):
        put(root / name / "0.png", pixels[number])
    return []


def _all_unknown(root: Path, pixels: np.ndarray) -> list[str]:
    for number, name in enumerate(("A1", "B1")):
        put(root / name / "0.png", pixels[number])
    return []


def _no_label(root: Path, pixels: np.ndarray) -> list[str]:
    for number in range(3):
        put(root / "images" / f"{number}.png", pixels[number])
    (root / "train.csv").write_text("ID,target\n0.png,a\n1.png,\n2.png,b\n")
    return []


def _no_labels(root: Path, pixels: np.ndarray) -> list[str]:
    class_folders(root / "train", pixels[:2], np.array(["a", "b"]))
    for number in range(3):
        put(root / "test" / f"{number}.png", pixels[number])
    return ["--split", "test"]


def _no_split(root: Path, pixels: np.ndarray) -> list[str]:
    class_folders(root, pixels[:2], np.array(["a", "b"]))
    return ["--split", "val"]


def _empty(root: Path, _: np.ndarray) -> list[str]:
    root.mkdir()
    return []


def _nothing_readable(root: Path, pixels: np.ndarray) -> list[str]:
    class_folders(root, pixels[:2], np.array(["a", "b"]))
    for path in root.rglob("*.png"):
        path.write_bytes(b"no image")
    return []


def _absent_class(root: Path, pixels: np.ndarray) -> list[str]:
    class_folders(root, pixels[:2], np.array(["a", "b"]))
    return ["--data.classes", "[a, q]"]


REFUSED = [
    (
        _unknown,
        "2 of its 4 classes are unknown to the member ('yak', 'zebra'); it knows 12 classes: 'l', 'k', 'j', ...",
    ),
    (_all_unknown, "2 of its 2 classes are unknown to the member ('A1', 'B1'"),
    (_no_label, "line 3 has no 'target'; fill it in or remove the line"),
    (_no_labels, "no image of its test split has a label (splits with labels: train)"),
    (_no_split, "no image of its val split has a label (splits with labels: train)"),
    (_empty, "is empty"),
    (_nothing_readable, "none of the 2 images can be read"),
    (_absent_class, "data.classes: 'q' has no image"),
]


@pytest.mark.parametrize(("make", "said"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_what_cannot_be_scored_is_one_line(make, said, best, labelled, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    more = make(tmp_path / "data", labelled[0])
    assert evaluated(best, tmp_path / "data", *more) == 1
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("evaluation-*"))


def test_known_classes_alone_are_chosen_by_data_classes(best, labelled, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    _unknown(tmp_path / "data", labelled[0])
    assert evaluated(best, tmp_path / "data", "--data.classes", "[a, b]") == 0
    (out,) = tmp_path.glob("evaluation-*")
    assert json.loads((out / "metrics.json").read_text())["images"] == 2


@pytest.mark.parametrize("right", [True, False])
def test_one_image_is_scored(right: bool, best, labelled, tmp_path: Path, capsys) -> None:
    pixels, _ = labelled
    predicted = NAMES[int(probabilities_of(best, pixels[:1]).argmax())]
    class_folders(tmp_path / "data", pixels[:1], np.array([predicted if right else min(set(NAMES) - {predicted})]))
    assert evaluated(best, tmp_path / "data", "--out", str(tmp_path / "out")) == 0
    said = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert said["accuracy"] == said["macro_f1"] == float(right)
    assert [one["images"] for one in said["per_class"]] in ([[1]] if right else [[0, 1], [1, 0]])
    assert "images: 1;" in capsys.readouterr().out


def test_options_that_are_none_are_refused(best, tmp_path: Path, capsys) -> None:
    for words, said in (
        (["--data.root", "x", "--spilt", "test"], "--spilt: no such option; did you mean --split? see"),
        (["--split", "test"], "required: --data.root"),
        (["--data.root", "x", "--model", "resnet50"], "--model: no such option"),
    ):
        with pytest.raises(SystemExit):
            main(["evaluate", "--member", str(best), *words])
        assert said in capsys.readouterr().err
    assert main(["evaluate", "--member", str(best), "--data.root", "x", "--data.tabel", "y"]) == 2
    assert "table" in capsys.readouterr().err


def test_features_go_with_their_labels(labelled, tmp_path: Path) -> None:
    from tests.unit.test_features import SPEC, saved, timms

    pixels, letters = labelled
    letters = np.array([letter if letter in "abcde" else "a" for letter in letters[:8]])
    root = folder(tmp_path / "data", pixels[:8], letters)
    best = saved(tmp_path / "best")
    out, file = tmp_path / "out", tmp_path / "out" / "f.npz"
    assert evaluated(best, root, "--out", str(out), "--features", str(file)) == 0
    with np.load(file) as found:
        assert found["labels"].tolist() == [name[0] for name in found["ids"].tolist()]
        order = [int(name[2:4]) for name in found["ids"].tolist()]
        np.testing.assert_allclose(found["features"], timms(pixels[order]), atol=1e-4)
    assert SPEC.num_classes == 5


def test_imagenets_synsets_and_names_are_its_classes(labelled, tmp_path: Path) -> None:
    pixels = labelled[0]
    names = json.loads((TABLES / "imagenet_1k.json").read_text(encoding="utf-8"))
    unique = tuple(f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names))
    best = members.checkpoint(tmp_path / "best", of=members.card(unique))
    folders = {"n01440764": 0, "n02085620-Chihuahua": 151, "great_white_shark": 2, "hen": 8, "crane (134)": 134}
    for number, name in enumerate(folders):
        put(tmp_path / "data" / name / "x.png", pixels[number])
    with infer.load(best) as model:
        found = infer.evaluate(model, tmp_path / "data")
    by_folder = {Path(name).parent.name: int(target) for name, target in zip(found.ids, found.targets, strict=True)}
    assert by_folder == folders
    put(tmp_path / "data" / "crane" / "x.png", pixels[0])  # the bird or the machine
    with infer.load(best) as model, pytest.raises(DataError, match="'crane'"):
        infer.evaluate(model, tmp_path / "data")
    assert imagenet.places(NAMES) == {}


def test_synsets_are_timms() -> None:
    timm_data = pytest.importorskip("timm.data")
    recorded = json.loads((TABLES / "imagenet_1k_synsets.json").read_text())
    assert recorded == timm_data.ImageNetInfo("imagenet-1k").label_names()


def test_two_labels_of_a_class_split_are_counted_not_guessed(labelled, tmp_path: Path) -> None:
    pixels, letters = labelled
    root = one_parquet(tmp_path / "data", pixels, letters)
    rows = {"image": [{"bytes": png(pixels[0]), "path": None}] * 3, "label": ["a", None, None]}
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.string())])
    parquet.write_table(pa.table(rows, schema), root / "test-00000-of-00001.parquet")
    found, split = sources.load_labelled(root, "test")
    assert split == "test" and len(found.samples) == 1 and found.notes == ("2 images without a label left out",)


def test_hostile_names_are_text(tmp_path: Path, labelled) -> None:
    hostile = ("<script>alert(1)</script>", "a&b")
    best = members.checkpoint(tmp_path / "best", of=members.card(hostile))
    (tmp_path / "data").mkdir()
    for number in range(4):
        put(tmp_path / "data" / f"{number}.png", labelled[0][number])
    rows = "".join(f"{number}.png,{hostile[number % 2]}\n" for number in range(4))
    (tmp_path / "data" / "train.csv").write_text(f"ID,target\n{rows}")
    assert evaluated(best, tmp_path / "data", "--out", str(tmp_path / "out")) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_names_that_are_no_utf8_and_packed_files_reach_the_page(best, labelled, tmp_path: Path) -> None:
    root = folder(tmp_path / "data", *labelled)
    odd = Path(os.fsdecode(os.fsencode(root / "a") + b"/d\xff.png"))
    odd.write_bytes(b"no image")
    assert evaluated(best, root, "--out", str(tmp_path / "out")) == 0
    assert list(json.loads((tmp_path / "out" / "metrics.json").read_text())["unreadable"]) == ["a/d\\xff.png"]
    assert "d\\xff.png" in (tmp_path / "out" / "report.html").read_text()
    packed = shards(tmp_path / "packed", *labelled)
    assert evaluated(best, packed, "--out", str(tmp_path / "packed_out")) == 0
    assert (tmp_path / "packed_out" / "report.html").read_text().count("data:image/jpeg") == 12


def test_the_result_says_what_it_is_of(best, labelled, tmp_path: Path) -> None:
    root = splits(tmp_path / "data", *labelled)
    with infer.load(best) as model:
        found = infer.evaluate(model, str(root), split="test")
    assert isinstance(found, Evaluation) and found.split == "test"
    assert "numpy" in found.name and found.root == root / "test" and len(found.ids) == COUNT
