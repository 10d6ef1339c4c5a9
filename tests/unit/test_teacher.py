"""Distillation and pseudo labels: whole runs on the NumPy engine teach others, and no fold hears of its validation."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import infer
from backends.contract import Batch
from config import load
from config.errors import ConfigError, DataError, Interrupted
from config.schema import Settings
from data import folds, sources
from models.weights import loading
from tests.numpy_engine import session
from tests.unit.test_campaign import StopAfter
from training.loop import checkpoint
from training.run import distillation, train_run

NEVER: Callable[[], bool] = lambda: False  # noqa: E731
SMOOTHING = 0.1
Arrays = dict[str, np.ndarray]


def settings(root: Path, out: Path, *more: str) -> Settings:
    words = ["--data.root", str(root), "--out", str(out), "--model", "convnext_atto", "--weights", "none"]
    words += ["--data.image_size", "16", "--train.epochs", "2", "--train.batch_size", "8", "--optim.lr", "0.01"]
    words += ["--folds.strategy", "stratified", "--folds.n_splits", "2", "--schedule.warmup_epochs", "0"]
    words += ["--loss.label_smoothing", str(SMOOTHING), "--data.workers", "1", "--augment.level", "none"]
    return load.parse([*words, *more], prog="test")


def answered(run: Path, out: Path, *more: str) -> Path:
    """A new file of the answers of a run; `more` are other runs, or options."""
    assert infer.main(["teacher", str(run), *more, "--out", str(out), "--workers", "1"]) == 0
    return out


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose folds teach."""
    return train_run.run_all("numpy", settings(digits, tmp_path_factory.mktemp("teacher")), NEVER)


@pytest.fixture(scope="module")
def extra(all_digits: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images without labels, one of which is called like a labelled one."""
    root = tmp_path_factory.mktemp("extra")
    names = [path.name for path in sorted((all_digits / "test").iterdir())[:30]]
    for name in names:
        shutil.copy(all_digits / "test" / name, root / name)
    (root / names[0]).rename(root / min((digits / "train").iterdir()).name)
    return root


@pytest.fixture(scope="module")
def labelled_file(run: Path) -> Path:
    return answered(run, run / "labelled.npz")


@pytest.fixture(scope="module")
def extra_file(run: Path, extra: Path) -> Path:
    return answered(run, run / "extra.npz", "--images", str(extra))


def arrays(path: Path) -> Arrays:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def changed(path: Path, out: Path, **new: np.ndarray | None) -> Path:
    """A copy of a file of answers with arrays replaced, or left out where None."""
    np.savez(out, **{name: value for name, value in {**arrays(path), **new}.items() if value is not None})
    return out


def lesson(
    wanted: Settings, run: Path, fold: int = 0
) -> tuple[distillation.DistillationTargets, sources.Table, np.ndarray]:
    """What a fold is trained on, the data set, and the positions of its labelled training images."""
    table = sources.load(wanted.data.root)
    fold_of = folds.read(run / "folds.csv", table)
    teaching, train = distillation.read(wanted, table), np.flatnonzero(fold_of != fold)
    distillation.check(teaching, table, fold_of, [fold])
    found = distillation.training_targets(teaching, table, train, fold)
    rows = found.targets[np.arange(len(found.labels))[::-1]][::-1]
    return found._replace(targets=rows), table, train


def last_weights(folder: Path, fold: int = 0) -> Arrays:
    newest = checkpoint.newest(folder / f"fold_{fold}")
    assert newest is not None
    return loading.read(newest / "model.safetensors")[0]


# The file


def test_each_fold_is_answered_by_its_own_members_alone(run: Path, extra: Path, extra_file: Path) -> None:
    held = arrays(extra_file)
    assert held["class_names"].tolist() == list("0123456789")
    for fold in (0, 1):
        mine = held["fold"] == fold
        paths = [extra / name for name in held["ids"][mine]]
        assert len(paths) == 30
        alone = infer.load(run / f"fold_{fold}" / "best").predict(paths).probabilities
        np.testing.assert_allclose(held["probabilities"][mine], alone, atol=1e-6)


def test_training_images_are_answered_less_those_that_validate_the_fold(run: Path, labelled_file: Path) -> None:
    held = arrays(labelled_file)
    split = dict(zip(held["split_ids"].tolist(), held["split_fold"].tolist(), strict=True))
    assert len(split) == 80
    for fold in (0, 1):
        assert {split[name] for name in held["ids"][held["fold"] == fold]} == {1 - fold}


def test_several_runs_teach_together_if_their_folds_are_the_same(run: Path, digits: Path, tmp_path: Path) -> None:
    other = train_run.run_all("numpy", settings(digits, tmp_path, "--seed", "1"), NEVER)
    assert infer.main(["teacher", str(run), str(other), "--out", str(tmp_path / "no.npz")]) == 2
    same = settings(digits, tmp_path, "--seed", "1", "--folds.file", str(run / "folds.csv"))
    second = train_run.run_all("numpy", same, NEVER)
    both = arrays(answered(run, tmp_path / "both.npz", str(second)))
    one, two = (arrays(answered(path, tmp_path / f"{i}.npz")) for i, path in enumerate((run, second)))
    np.testing.assert_array_equal(both["ids"], one["ids"])
    np.testing.assert_allclose(both["probabilities"], (one["probabilities"] + two["probabilities"]) / 2, atol=1e-6)


def test_a_file_is_never_overwritten(run: Path, labelled_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert infer.main(["teacher", str(run), "--out", str(labelled_file)]) == 2
    assert "exists already" in capsys.readouterr().err


# Targets


@pytest.mark.parametrize(("weight", "temperature"), [(0.3, 2.0), (1.0, 4.0), (0.0, 1.0)])
def test_targets_are_labels_and_softened_answers_by_weight(weight, temperature, run, digits, labelled_file) -> None:
    words = ["--teacher.file", str(labelled_file), "--teacher.weight", str(weight)]
    wanted = settings(digits, run.parent, *words, "--teacher.temperature", str(temperature))
    got, table, train = lesson(wanted, run)
    held = arrays(labelled_file)
    place = {name: i for i, name in enumerate(held["ids"]) if held["fold"][i] == 0}
    logits = torch.from_numpy(np.log(held["probabilities"][[place[table.ids[i]] for i in train]]))
    soft = torch.softmax(logits / temperature, dim=1).numpy()
    hard = torch.nn.functional.one_hot(torch.from_numpy(table.labels[train]), 10).numpy()
    hard = (1 - SMOOTHING) * hard + SMOOTHING / 10
    np.testing.assert_allclose(got.targets, (1 - weight) * hard + weight * soft, atol=1e-6)
    assert (got.weights == 1).all()


def test_an_unreadable_image_has_no_answer_and_students_leave_it_out(run, digits, extra, tmp_path, capsys) -> None:
    damaged = tmp_path / "extra"
    shutil.copytree(extra, damaged)
    victims = sorted(damaged.iterdir())[3:5]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:60])
    words = ["teacher", str(run), "--images", str(damaged)]
    assert infer.main([*words, "--out", str(tmp_path / "no.npz"), "--on_bad_image", "error"]) == 1
    assert victims[0].name in capsys.readouterr().err and not (tmp_path / "no.npz").exists()
    file = answered(run, tmp_path / "extra.npz", "--images", str(damaged))
    err = capsys.readouterr().err
    assert "warning: no answer for 2 unreadable images" in err and victims[0].name in err
    held = arrays(file)
    assert set(held["unreadable"]) == {victim.name for victim in victims}
    assert len(held["ids"]) == 2 * 28 and not set(held["unreadable"]) & set(held["ids"])
    np.testing.assert_allclose(held["probabilities"].sum(axis=1), 1, atol=1e-5)
    got, _, train = lesson(pseudo(digits, run, damaged, file), run)
    assert {path.name for path in got.paths[len(train) :]} == {p.name for p in damaged.iterdir()} - {
        victim.name for victim in victims
    }
    for path in damaged.iterdir():
        path.write_bytes(b"no image")
    assert infer.main([*words, "--out", str(tmp_path / "no.npz")]) == 1
    assert "none of the 30 images can be read" in capsys.readouterr().err


def test_a_labelled_image_that_the_teacher_could_not_read_keeps_its_label(run, digits, labelled_file, tmp_path) -> None:
    held = arrays(labelled_file)
    victim = held["ids"][held["fold"] == 0][5]
    kept = held["ids"] != victim
    rows = {name: held[name][kept] for name in ("ids", "probabilities", "fold")}
    file = changed(labelled_file, tmp_path / "less.npz", **rows, unreadable=np.array([victim]))
    wanted = settings(digits, tmp_path, "--teacher.file", str(file), "--teacher.weight", "1.0")
    got, table, train = lesson(wanted, run)
    place = [table.ids[i] for i in train].index(victim)
    np.testing.assert_allclose(got.targets[place], np.eye(10)[got.labels[place]], atol=1e-6)
    with pytest.raises(ConfigError, match="has no answer for 1 of 40 images"):
        lesson(
            settings(digits, tmp_path, "--teacher.file", str(changed(labelled_file, tmp_path / "x.npz", **rows))), run
        )


def test_logits_serve_as_well_as_probabilities(run: Path, digits: Path, labelled_file: Path, tmp_path: Path) -> None:
    logits = np.log(arrays(labelled_file)["probabilities"]) + 5
    other = changed(labelled_file, tmp_path / "logits.npz", logits=logits, probabilities=None)
    one, two = (lesson(settings(digits, tmp_path, "--teacher.file", str(f)), run)[0] for f in (labelled_file, other))
    np.testing.assert_allclose(one.targets, two.targets, atol=1e-5)


def test_classes_are_matched_by_name_not_by_place(run: Path, digits: Path, labelled_file: Path, tmp_path: Path) -> None:
    held = arrays(labelled_file)
    turned = {name: held[name][..., ::-1] for name in ("class_names", "probabilities")}
    other = changed(labelled_file, tmp_path / "turned.npz", **turned)
    one, two = (lesson(settings(digits, tmp_path, "--teacher.file", str(f)), run)[0] for f in (labelled_file, other))
    np.testing.assert_allclose(one.targets, two.targets, atol=1e-6)


# Pseudo labels


def pseudo(root: Path, run: Path, extra: Path, file: Path, *more: str) -> Settings:
    return settings(root, run.parent, "--teacher.extra_root", str(extra), "--teacher.extra_file", str(file), *more)


def test_sure_images_are_appended_with_their_weight(run, digits, extra, extra_file) -> None:
    held = arrays(extra_file)
    sure = np.median(held["probabilities"][held["fold"] == 0].max(axis=1))
    floor = ("--teacher.min_confidence", f"{sure:.6f}", "--teacher.extra_weight", "0.25")
    got, table, train = lesson(pseudo(digits, run, extra, extra_file, *floor), run)
    count = len(got.paths) - len(train)
    assert 0 < count < 30
    assert got.paths[: len(train)] == [table.paths[i] for i in train]
    np.testing.assert_array_equal(got.weights, np.r_[np.ones(len(train)), np.full(count, 0.25)].astype(np.float32))
    said = {name: row for name, row, k in zip(held["ids"], held["probabilities"], held["fold"], strict=True) if k == 0}
    chosen = {path.name for path in got.paths[len(train) :]}
    assert chosen == {name for name, row in said.items() if row.max() >= float(f"{sure:.6f}")}
    for path, label, target in zip(
        got.paths[len(train) :], got.labels[len(train) :], got.targets[len(train) :], strict=True
    ):
        np.testing.assert_allclose(target, said[path.name], atol=1e-6)
        assert label == said[path.name].argmax()


def test_hard_pseudo_labels_are_those_of_a_labelled_image(run, digits, extra, extra_file) -> None:
    got, _, train = lesson(pseudo(digits, run, extra, extra_file, "--teacher.extra_labels", "hard"), run)
    np.testing.assert_allclose(np.sort(got.targets[len(train) :])[:, -1], 1 - SMOOTHING + SMOOTHING / 10, atol=1e-6)
    np.testing.assert_array_equal(got.targets.argmax(axis=1), got.labels)


def test_extra_images_are_trained_on_with_their_weight_and_never_validated(
    run, digits, extra, extra_file, tmp_path, monkeypatch
) -> None:
    seen: list[np.ndarray] = []
    original = session.Session.train_step

    def spy(this: session.Session, batch: Batch, *rest: object) -> object:
        seen.append(batch.weights)
        return original(this, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(session.Session, "train_step", spy)
    more = ("--teacher.extra_weight", "0.25", "--folds.file", str(run / "folds.csv"), "--out", str(tmp_path))
    student = train_run.run_all("numpy", pseudo(digits, run, extra, extra_file, *more), NEVER)
    counts = np.unique(np.concatenate(seen), return_counts=True)
    assert counts[0].tolist() == [0.25, 1.0]
    assert counts[1].sum() == 2 * 2 * (70 // 8) * 8  # folds, epochs, whole batches of 40 labelled and 30 others
    labelled = {path.name for path in (digits / "train").iterdir()}
    ids = [name for fold in (0, 1) for name in arrays(student / f"fold_{fold}" / "oof.npz")["ids"]]
    assert set(ids) == labelled
    assert len(ids) == 80


def test_a_stopped_student_goes_on_bit_for_bit(run, digits, extra, extra_file, tmp_path) -> None:
    ends = []
    for stops in ([], [7]):
        more = ("--folds.file", str(run / "folds.csv"), "--mix.mixup", "0.4", "--out", str(tmp_path / str(len(stops))))
        wanted = pseudo(digits, run, extra, extra_file, "--teacher.extra_weight", "0.5", *more)
        for questions in stops:
            with pytest.raises(Interrupted):
                train_run.run_all("numpy", wanted, StopAfter(questions))
        ends.append(last_weights(train_run.run_all("numpy", wanted, NEVER)))
    for name, value in ends[0].items():
        np.testing.assert_array_equal(value, ends[1][name], err_msg=name)


# Hygiene


def relabelled(root: Path, run: Path, fold: int, out: Path) -> Path:
    """The data set and its folds.csv with other labels for every image that validates a fold."""
    shutil.copytree(root, out)
    with (run / "folds.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        if row["fold"] == str(fold):
            row["target"] = str((int(row["target"]) + 1) % 10)
    for name, columns in (("train.csv", ["ID", "target"]), ("folds.csv", ["ID", "target", "fold"])):
        with (out / name).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    return out


def taught(root: Path, folds_file: Path, extra: Path, out: Path) -> Path:
    """A teacher run of one epoch, whose best is its last, and a student of its answers and pseudo labels."""
    shared = ("--folds.file", str(folds_file))
    first = train_run.run_all("numpy", settings(root, out / "first", *shared, "--train.epochs", "1"), NEVER)
    files = answered(first, out / "own.npz"), answered(first, out / "extra.npz", "--images", str(extra))
    words = ["--teacher.file", str(files[0]), "--teacher.extra_file", str(files[1]), "--teacher.extra_root", str(extra)]
    return train_run.run_all("numpy", settings(root, out / "second", *shared, *words), NEVER)


def test_what_a_fold_learns_does_not_depend_on_the_labels_that_validate_it(run, digits, extra, tmp_path) -> None:
    other = relabelled(digits, run, 0, tmp_path / "other")
    one = taught(digits, run / "folds.csv", extra, tmp_path / "one")
    two = taught(other, other / "folds.csv", extra, tmp_path / "two")
    mine, theirs = last_weights(one), last_weights(two)
    for name, value in mine.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    other_fold = last_weights(one, 1), last_weights(two, 1)
    assert any((other_fold[0][name] != value).any() for name, value in other_fold[1].items())


def test_an_answer_of_another_folds_teacher_is_never_used(
    run, digits, extra, labelled_file, extra_file, tmp_path
) -> None:
    runs = []
    for spoilt in (False, True):
        files = []
        for file in (labelled_file, extra_file):
            held = arrays(file)
            if spoilt:
                held["probabilities"][held["fold"] == 1] = np.eye(10, dtype=np.float32)[7]
            files.append(changed(file, tmp_path / f"{spoilt}_{file.name}", **held))
        words = ("--teacher.file", str(files[0]), "--folds.train", "[0]", "--folds.file", str(run / "folds.csv"))
        wanted = pseudo(digits, run, extra, files[1], *words, "--out", str(tmp_path / str(spoilt)))
        runs.append(last_weights(train_run.run_all("numpy", wanted, NEVER)))
    for name, value in runs[0].items():
        np.testing.assert_array_equal(value, runs[1][name], err_msg=name)


def test_another_split_than_the_teachers_is_refused_before_training(run, digits, extra, extra_file, tmp_path) -> None:
    wanted = pseudo(digits, run, extra, extra_file, "--seed", "9", "--out", str(tmp_path))
    with pytest.raises(ConfigError, match=r"teacher of fold 0 may have seen \d+ validation images .*folds\.file"):
        train_run.run_all("numpy", wanted, NEVER)
    assert not list(tmp_path.glob("*/fold_*/best"))


@pytest.mark.parametrize("lacking", ["fold", "split_ids", "split_fold"])
def test_a_file_that_does_not_say_who_may_use_it_is_refused(lacking, run, digits, labelled_file, tmp_path) -> None:
    bare = changed(labelled_file, tmp_path / "bare.npz", **{lacking: None})
    with pytest.raises(
        ConfigError, match=rf"no array '{lacking}'.*which validation images its teacher saw.*infer teacher"
    ):
        train_run.run_all("numpy", settings(digits, tmp_path, "--teacher.file", str(bare)), NEVER)
    assert not list(tmp_path.glob("*/"))


def test_a_fold_without_a_teacher_is_refused(run, digits, labelled_file, tmp_path) -> None:
    held = arrays(labelled_file)
    rows = {name: held[name][held["fold"] == 0] for name in ("ids", "probabilities", "fold")}
    half = changed(labelled_file, tmp_path / "half.npz", **rows)
    wanted = settings(digits, tmp_path, "--teacher.file", str(half), "--folds.file", str(run / "folds.csv"))
    with pytest.raises(ConfigError, match=r"no answers for fold 1, only for 0"):
        train_run.run_all("numpy", wanted, NEVER)
    assert not list(tmp_path.glob("*/fold_*/best")), "fold 0 was trained before fold 1 was found to be lacking"


# Bad input


def test_images_without_an_answer_are_named(run, digits, extra, extra_file, tmp_path) -> None:
    held = arrays(extra_file)
    kept = held["ids"] != held["ids"][3]
    short = changed(extra_file, tmp_path / "short.npz", **{n: held[n][kept] for n in ("ids", "probabilities", "fold")})
    with pytest.raises(ConfigError, match=rf"no answer for 1 of 30 images in fold 0 \({held['ids'][3]}"):
        lesson(pseudo(digits, run, extra, short), run)


def test_a_floor_that_no_image_reaches_is_an_error(run, digits, extra, extra_file) -> None:
    with pytest.raises(ConfigError, match=r"min_confidence 0\.9999.*lower it"):
        lesson(pseudo(digits, run, extra, extra_file, "--teacher.min_confidence", "0.9999"), run)


def test_a_labelled_image_among_the_extra_ones_is_refused(run, digits, extra_file) -> None:
    with pytest.raises(DataError, match=r"is a labelled image and in teacher\.extra_root as well \(80 such\)"):
        lesson(pseudo(digits, run, digits / "train", extra_file), run)


def test_a_teacher_of_other_classes_is_refused(run, digits, labelled_file, tmp_path) -> None:
    names = np.array([*"012345678", "ten"])
    other = changed(labelled_file, tmp_path / "other.npz", class_names=names)
    with pytest.raises(ConfigError, match=r"is not in both, take a teacher of the same classes"):
        lesson(settings(digits, tmp_path, "--teacher.file", str(other)), run)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"probabilities": None}, "has the arrays .* not ids, class_names and probabilities"),
        ({"ids": np.array(["a"])}, "do not fit each other"),
        ({"probabilities": np.full((80, 10), 0.3, np.float32)}, "no probabilities"),
        ({"probabilities": np.full((80, 10), np.nan, np.float32)}, "no probabilities"),
        ({"split_fold": np.zeros(3, np.int64)}, "do not fit each other"),
    ],
)
def test_a_damaged_file_is_one_line(new, message, run, digits, labelled_file, tmp_path) -> None:
    bad = changed(labelled_file, tmp_path / "bad.npz", **new)
    with pytest.raises(DataError, match=message):
        lesson(settings(digits, tmp_path, "--teacher.file", str(bad)), run)


def test_no_file_at_all_is_one_line(run, digits, tmp_path) -> None:
    (tmp_path / "text.npz").write_text("not an archive")
    for name in ("text.npz", "missing.npz"):
        with pytest.raises(DataError, match=rf"{name}: cannot be read"):
            lesson(settings(digits, tmp_path, "--teacher.file", str(tmp_path / name)), run)


@pytest.mark.parametrize(("given", "other"), [("extra_root", "extra_file"), ("extra_file", "extra_root")])
def test_extra_images_and_their_answers_come_together(given: str, other: str, digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"teacher\.{other}: found null"):
        settings(digits, tmp_path, f"--teacher.{given}", "x")
