"""Documents: the synthetic pages, damage and its repair, padding, validation on damaged pages, small classes."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from config import load
from config.errors import ConfigError, DataError
from data import __main__ as command
from data import sources
from data.audit import audit as whole
from data.augment import corrupt, restore, transforms
from data.decode.image import decode
from data.rng import philox
from examples.documents import __main__
from infer import retry_deskewed
from infer.__main__ import main as infer_main
from infer.member import ensemble_of
from infer.runner import Runner
from models.card import Preprocessing
from tests.unit import members
from tests.unit.test_campaign import NEVER, settings
from training.run import train_run


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return __main__.write(tmp_path_factory.mktemp("documents") / "pages", train=6, test=1)


@pytest.fixture(scope="module")
def few(root: Path, tmp_path_factory) -> Path:
    """Four of the kinds, one of them rare."""
    folder = tmp_path_factory.mktemp("few")
    rows = [row for row in table(root / "train.csv") if row["target"] in ("letter", "memo", "receipt", "chart")]
    (folder / "train").mkdir()
    for row in rows:
        shutil.copy(root / "train" / row["ID"], folder / "train")
    lines = [f"{row['ID']},{row['target']}" for row in rows]
    (folder / "train.csv").write_text("\n".join(["ID,target", *lines]))
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_pages_are_seventeen_kinds_seeded_and_split(root: Path, tmp_path: Path, capsys) -> None:
    train, test = sources.load(root), sources.load_test(root)
    assert len(train.class_names) == 17 and len(test.ids) == 34
    assert sorted(set(np.bincount(train.labels).tolist())) == [2, 6], "three kinds are rare"
    answers = table(root / "hidden_answers.csv")
    assert Counter(row["half"] for row in answers) == {"clean": 17, "corrupted": 17}
    assert [row["ID"] for row in answers] == test.ids
    again = __main__.write(tmp_path / "again", train=1, test=1)
    for path in (path for path in again.rglob("*") if path.suffix == ".jpg" or path.name == "hidden_answers.csv"):
        assert path.read_bytes() == (root / path.relative_to(again)).read_bytes()
    assert __main__.main([str(again)]) == 1 and "is not empty" in capsys.readouterr().err
    other = next(__main__.pages(1, 1, seed=1)).image
    assert (other.shape != decode(train.paths[0]).shape) or (other != decode(train.paths[0])).any()


def test_pages_of_one_kind_do_not_hold_a_class_together(root: Path) -> None:
    data = load.parse(["--data.root", str(root)], prog="test").data
    found = whole.audit(sources.load(root), None, data)
    labels = sources.load(root).labels
    for group in np.flatnonzero(np.bincount(found.groups) > 1):
        members_of = np.flatnonzero(found.groups == group)
        assert len(members_of) <= 4 or 2 * len(members_of) <= (labels == labels[members_of[0]]).sum()


@pytest.mark.parametrize("degrees", [-9.0, 4.5, 11.0])
def test_skew_is_measured_and_taken_out(degrees: float) -> None:
    for name in ("letter", "invoice", "cheque"):
        made = __main__.page(name, philox(1, "page"))
        turned = corrupt.skewed(made, degrees)
        assert restore.skew(turned) == pytest.approx(degrees, abs=1)
        assert abs(restore.skew(restore.deskewed(turned))) <= 1


def test_faded_and_shaded_pages_become_ink_on_white() -> None:
    made = __main__.page("letter", philox(2, "page"))
    faded = cv2.convertScaleAbs(made, alpha=0.4, beta=80)
    faded[:, 200:] = (faded[:, 200:] * 0.6).astype(np.uint8)
    better = restore.levelled(faded)
    assert np.percentile(better, 60) > 240 and better.min() < 40
    assert abs(float(np.median(better[:, :150])) - float(np.median(better[:, 260:]))) < 15


def test_damage_is_seeded_and_keeps_the_page(root: Path) -> None:
    image = __main__.page("form", philox(0, "page"))
    draws = [corrupt.corrupt(image, philox(0, "damage", i)) for i in range(8)]
    np.testing.assert_array_equal(draws[0], corrupt.corrupt(image, philox(0, "damage", 0)))
    assert len({draw.tobytes() for draw in draws}) == 8
    assert {draw.shape[0] > draw.shape[1] for draw in draws} == {True, False}, "some lie on their side"


def test_a_letterbox_goes_on_with_the_papers_colour(root: Path) -> None:
    paper = np.full((100, 60, 3), (250, 240, 220), dtype=np.uint8)
    paper[40:60, 20:40] = 10
    grey, background = (Preprocessing(size=50, fit="letterbox", pad=pad) for pad in ("grey", "background"))
    assert tuple(transforms.EvalTransform(grey)(paper)[25, 2]) == (128, 128, 128)
    assert tuple(transforms.EvalTransform(background)(paper)[25, 2]) == (250, 240, 220)
    section = load.parse(["--config", "documents", "--data.root", str(root)], prog="test").augment
    transform = transforms.train_transform(
        section.model_copy(update={"ops": {**section.ops, "gaussian_noise": False, "shadow": False}}), background
    )
    corners = [transform(paper, philox(0, "augment", i))[0, 0].astype(int) for i in range(20)]
    assert np.median([corner.mean() for corner in corners]) > 190, "the training's padding is paper too"
    photo = np.random.default_rng(0).integers(0, 256, (100, 60, 3), dtype=np.uint8)
    assert tuple(transforms.EvalTransform(background)(photo)[25, 2]) == (128, 128, 128), "it has no background"


def test_damaged_validation_pages_are_scored_beside_the_clean_and_decide(few: Path, tmp_path: Path) -> None:
    more = ("--stopping.robust_weight", "0.5", "--folds.train", "[0]", "--sampling.oversample_classes", "[]")
    folder = train_run.run_all("numpy", settings(few, tmp_path, *more), NEVER)
    rows = table(folder / "fold_0" / "history.csv")
    both = [(float(row["macro_f1"]) + float(row["corrupted_macro_f1"])) / 2 for row in rows]
    result = yaml.safe_load((folder / "fold_results.yaml").read_text())
    (fold,) = result["folds"]
    assert fold["best_epoch"] == 1 + int(np.argmax(both))
    best = float(rows[fold["best_epoch"] - 1]["corrupted_macro_f1"])
    assert fold["corrupted_macro_f1"] == pytest.approx(best, abs=1e-6) == result["mean"]["corrupted_macro_f1"]
    again = train_run.run_all("numpy", settings(few, tmp_path / "again", *more), NEVER)
    assert [row["corrupted_log_loss"] for row in table(again / "fold_0" / "history.csv")] == [
        row["corrupted_log_loss"] for row in rows
    ]


def test_averages_do_not_go_with_damaged_validation(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stopping\.robust_weight: found '0.5'.*soup"):
        settings(root, tmp_path, "--stopping.robust_weight", "0.5", "--soup", "true")


def test_small_classes_are_filled_up_with_damaged_copies(few: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "more"
    words = ["enlarge", "--root", str(few), "--out", str(out), "--min_per_class", "5"]
    assert command.main(words) == 0
    assert "3 of memo" in capsys.readouterr().out
    after = sources.load(out)
    assert sorted(set(np.bincount(after.labels).tolist())) == [5, 6]
    rows = table(out / "train.csv")
    groups = {row["ID"]: row["group"] for row in rows}
    made = [name for name in groups if "__damaged_" in name]
    assert len(made) == 3 and all(groups[name] in groups and groups[name] != name for name in made)
    more = ("--folds.strategy", "stratified_group", "--folds.train", "[0]", "--sampling.oversample_classes", "[]")
    folder = train_run.run_all("numpy", settings(out, tmp_path / "runs", *more), NEVER)
    fold = {row["ID"]: row["fold"] for row in table(folder / "folds.csv")}
    assert all(fold[name] == fold[groups[name]] for name in made)
    assert command.main(words) == 1 and "is not empty" in capsys.readouterr().err
    with pytest.raises(DataError, match="is not empty"):
        __main__.write(out)


def test_ids_that_are_windows_or_absolute_paths_are_filled_up_inside_the_new_folder(tmp_path: Path, capsys) -> None:
    data, out = tmp_path / "data", tmp_path / "more"
    members.photographs(data / "train", count=6)
    names = [r"train\000.png", "./train/001.png", str(data / "train" / "002.png"), "train/003", "004.png", "005"]
    lines = [f"{name},{'cat' if number < 4 else 'dog'}" for number, name in enumerate(names)]
    (data / "train.csv").write_text("\n".join(["ID,target", *lines]) + "\n")
    before = {path: path.read_bytes() for path in (data / "train").iterdir()}
    assert command.main(["enlarge", "--root", str(data), "--out", str(out), "--min_per_class", "4"]) == 0
    assert "2 of dog" in capsys.readouterr().out
    after = sources.load(out)
    assert np.bincount(after.labels).tolist() == [4, 4]
    assert sorted(path.read_bytes() for path in before) == sorted(before.values())
    kept = {path.read_bytes() for path in after.paths}
    assert set(before.values()) <= kept and all(path.is_relative_to(out) for path in after.paths)


def test_only_unsure_images_are_looked_at_again(tmp_path: Path, capsys) -> None:
    place = members.checkpoint(tmp_path / "member", sharpness=5.0)
    paths, pixels = members.photographs(tmp_path / "images")
    with Runner(ensemble_of([str(place)])) as runner:
        first = runner.predict(list(pixels)).probabilities
        below = float(np.median(first.max(axis=1)))
        predict = lambda inputs: runner.predict_inputs(inputs).probabilities  # noqa: E731
        after, count = retry_deskewed.retry_deskewed(predict, paths, first, below)
        unsure = first.max(axis=1) < below
        assert count == unsure.sum() == 3
        np.testing.assert_array_equal(after[~unsure], first[~unsure])
        restored = runner.predict([restore.restored(image) for image in pixels[unsure]]).probabilities
        np.testing.assert_allclose(after[unsure], (first[unsure] + restored) / 2, rtol=1e-6)
    words = ["--member", str(place), "--images", str(tmp_path / "images"), "--out", str(tmp_path / "a.csv")]
    assert infer_main([*words, "--retry_deskewed", str(below)]) == 0
    assert "looked again at 3 images" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "images")
