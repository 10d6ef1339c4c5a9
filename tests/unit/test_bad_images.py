"""`data.on_bad_image`: an image that cannot be read stops the run, or is left out and counted, the same on resume."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import infer
from config.errors import DataError, Interrupted
from data.augment import transforms
from data.decode.image import decode
from data.loading.loader import Loader
from models.card import Preprocessing
from tests.unit import members
from tests.unit.test_campaign import NEVER, StopAfter, final, settings
from training.run import results, train_run

SKIP = ("--data.on_bad_image", "skip")


@pytest.fixture
def damaged(digits: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """The digits, three of them cut short, and their names."""
    root = tmp_path / "data"
    shutil.copytree(digits, root)
    victims = sorted((root / "train").iterdir())[:9:4]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:60])
    return root, [victim.name for victim in victims]


def loader(root: Path, **options: bool) -> Loader:
    paths = sorted((root / "train").iterdir())[:12]
    return Loader(paths, transforms.EvalTransform(Preprocessing(16)), 16, batch_size=8, workers=2, **options)


def test_a_bad_image_weighs_nothing_and_another_one_stands_in_its_place(damaged: tuple[Path, list[str]]) -> None:
    root, names = damaged
    source = loader(root, skip_bad=True)
    first, last = source.epoch(np.arange(12))
    np.testing.assert_array_equal(first.weight, [0, 1, 1, 1, 0, 1, 1, 1])
    np.testing.assert_array_equal(first.index, np.arange(8))
    np.testing.assert_array_equal(first.images[0], first.images[1])
    np.testing.assert_array_equal(last.weight, [0, 1, 1, 1, 0, 0, 0, 0])
    assert sorted(path.name for path in source.bad) == names
    with pytest.raises(DataError, match=names[0]):
        list(loader(root).epoch(np.arange(12)))


def test_a_batch_without_any_readable_image_is_an_error(damaged: tuple[Path, list[str]]) -> None:
    root, _ = damaged
    with pytest.raises(DataError, match="a whole batch of 2 images cannot be read"):
        list(loader(root, skip_bad=True).epoch(np.array([0, 4])))


def test_a_run_leaves_them_out_counts_them_and_resumes_exactly(
    damaged: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, names = damaged
    straight = train_run.run_all("numpy", settings(root, tmp_path / "a", *SKIP), NEVER)
    said = capsys.readouterr().out
    ids, logits, _ = results.oof(straight)
    assert len(ids) == 80 - 3
    assert np.isfinite(logits).all()
    assert not set(names) & set(ids)
    for name in names:
        assert f"{name}: cannot be decoded" in said
    assert "9 unreadable images left out" in (straight / "report.html").read_text()
    with (straight / "fold_0" / "history.csv").open(newline="") as stream:
        assert [row["unreadable"] for row in csv.DictReader(stream)] == ["3", "3", "3"]
    assert [fold["unreadable"] for fold in yaml.safe_load((straight / "fold_results.yaml").read_text())["folds"]] == [
        9
    ] * 2
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", settings(root, tmp_path / "b", *SKIP), StopAfter(8))
    resumed = train_run.run_all("numpy", settings(root, tmp_path / "b", *SKIP), NEVER)
    one, other = final(straight), final(resumed)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_what_stands_in_their_place_trains_nothing(
    damaged: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were they black or white: the weights come out the same, under Mixup too."""
    root, _ = damaged
    covered = train_run.run_all("numpy", settings(root, tmp_path / "a", *SKIP), NEVER)
    from data.loading import loader as module

    def white(batch: module.Loaded, bad: dict[Path, str]) -> module.Loaded:
        batch.images[batch.weight == 0] = 255
        return batch

    monkeypatch.setattr(module, "_cover", white)
    bleached = train_run.run_all("numpy", settings(root, tmp_path / "b", *SKIP), NEVER)
    one, other = final(covered), final(bleached)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.mark.parametrize("layout", ["csv", "class folders"])
def test_an_image_that_vanished_between_two_starts_is_left_out_too(layout: str, digits: Path, tmp_path: Path) -> None:
    """The folds stay as they were: the other images are trained and validated where they would have been."""
    root = tmp_path / "data"
    shutil.copytree(digits, root)
    if layout == "class folders":
        _into_class_folders(root)
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", settings(root, tmp_path / "runs", *SKIP), StopAfter(8))
    victim = sorted(root.glob("train/**/*.png"))[5]
    victim.rename(tmp_path / "away.png")
    folder = train_run.run_all("numpy", settings(root, tmp_path / "runs", *SKIP), NEVER)
    ids, _, _ = results.oof(folder)
    with (folder / "folds.csv").open(newline="") as stream:
        remembered = {row["ID"]: row["fold"] for row in csv.DictReader(stream)}
    name = victim.relative_to(root / "train").as_posix()
    assert len(remembered) == 80
    assert set(remembered) - set(ids) <= {name}, "it may have been validated before it vanished"
    with (folder / f"fold_{remembered[name]}" / "history.csv").open(newline="") as stream:
        assert int([*csv.DictReader(stream)][-1]["unreadable"]) >= 1
    if layout == "csv":
        with pytest.raises(DataError, match=victim.stem):
            train_run.run_all("numpy", settings(root, tmp_path / "runs"), NEVER)


def _into_class_folders(root: Path) -> None:
    with (root / "train.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            (root / "train" / row["target"]).mkdir(exist_ok=True)
            (root / "train" / row["ID"]).rename(root / "train" / row["target"] / row["ID"])
    (root / "train.csv").unlink()


def test_what_remains_of_truncated_images_trains_and_is_named_once(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(digits, root)
    cut, other, gone = sorted((root / "train").iterdir())[:9:4]
    for victim in (cut, other):
        with Image.open(victim) as image:
            image.convert("RGB").resize((256, 256)).save(victim, "PNG")
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    gone.write_bytes(gone.read_bytes()[:20])
    with pytest.raises(DataError, match=cut.name):
        train_run.run_all("numpy", settings(root, tmp_path / "a"), NEVER)
    capsys.readouterr()
    run = train_run.run_all("numpy", settings(root, tmp_path / "a", "--data.on_bad_image", "partial"), NEVER)
    said = capsys.readouterr().out
    ids, logits, _ = results.oof(run)
    assert len(ids) == 80 - 1 and gone.name not in ids and {cut.name, other.name} <= set(ids)
    assert np.isfinite(logits).all()
    assert "truncated images: 2, trained on as far as they go: " in said
    assert all(said.count(f"{path.name}: is truncated; what is missing is grey") == 1 for path in (cut, other))
    assert f"{gone.name}: cannot be decoded" in said


def test_inference_takes_what_remains_where_it_is_asked_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from infer.__main__ import main

    model = members.checkpoint(tmp_path / "model", sharpness=1)
    paths, pixels = members.photographs(tmp_path / "images", count=3)
    paths[1].write_bytes(paths[1].read_bytes()[: paths[1].stat().st_size // 2])
    paths[2].write_bytes(paths[2].read_bytes()[:20])
    words = ["--member", str(model), "--images", str(tmp_path / "images"), "--out", str(tmp_path / "s.npz")]
    assert main([*words, "--on_bad_image", "error"]) == 1
    assert "001.png: cannot be decoded" in capsys.readouterr().err
    assert main([*words, "--on_bad_image", "partial"]) == 0
    said = capsys.readouterr()
    assert f"truncated images: 1, predicted as far as they go; the first: {paths[1]}: is truncated" in said.out
    assert "002.png: cannot be decoded" in said.err
    with np.load(tmp_path / "s.npz") as found, infer.load(model) as opened:
        expected = opened.predict([pixels[0], decode(paths[1], truncated=str)]).probabilities
        np.testing.assert_allclose(found["probabilities"][:2], expected, atol=2e-6)
        assert np.isfinite(found["probabilities"][2]).all()
    with pytest.raises(DataError, match=r"001\.png"), infer.load(model) as opened:
        opened.predict(paths)


def test_commands_on_the_runs_own_images_pass_over_what_the_run_passed_over(digits: Path, tmp_path: Path) -> None:
    """`infer oof`, `adapt` and `teacher`, with a truncated image and one that is none."""
    root = tmp_path / "data"
    shutil.copytree(digits, root)
    cut, gone = sorted((root / "train").iterdir())[:5:4]
    with Image.open(cut) as image:
        image.convert("RGB").resize((256, 256)).save(cut, "PNG")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    gone.write_bytes(gone.read_bytes()[:20])
    run = train_run.run_all("numpy", settings(root, tmp_path / "runs", "--data.on_bad_image", "partial"), NEVER)
    assert infer.main(["oof", str(run), "--tta", "flip", "--workers", "1"]) == 0
    file = tmp_path / "ensemble.yaml"
    assert infer.main(["fit", str(run), "--tta", "flip", "--out", str(file)]) == 0
    assert infer.main(["adapt", str(file), "--out", str(tmp_path / "adaptive.yaml")]) == 0
    words = ["teacher", str(run), "--out", str(tmp_path / "t.npz"), "--on_bad_image", "partial"]
    assert infer.main(words) == 0
    with np.load(tmp_path / "t.npz") as answers:
        assert answers["unreadable"].tolist() == [gone.name] and cut.name in answers["ids"]
    with np.load(next(run.glob("fold_*/oof.npz"))) as first:
        (root / "train" / str(first["ids"][7])).write_bytes(b"changed since")
    for path in run.glob("fold_*/oof_*.npz"):
        path.unlink()
    assert infer.main(["oof", str(run), "--tta", "flip", "--workers", "1"]) == 1, "it was readable when it was trained"
