"""The audit around a training: what is applied, what stays in one fold, what trained folds say of the labels."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from config.errors import DataError, Interrupted
from config.schema import Settings
from data import sources
from tests.unit.test_audit_duplicates import scene
from tests.unit.test_campaign import NEVER, settings
from training.report import summary
from training.run import prepare, run_dir, train_run

PLAIN = ("--sampling.oversample_classes", "[]", "--mining.cap", "0", "--train.epochs", "1")


def audited(root: Path, out: Path, *more: str) -> Settings:
    return settings(root, out, "--data.audit", "true", *more)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of ten pictures; each of the first has a smaller and darker twin."""
    root = tmp_path_factory.mktemp("twins")
    for number, name in enumerate("abc"):
        (root / name).mkdir()
        for i in range(10):
            image = scene(100 * number + i, 60, 80)
            Image.fromarray(image).save(root / name / f"{i}.png")
            if name == "a":
                twin = cv2.convertScaleAbs(cv2.resize(image, (60, 50), interpolation=cv2.INTER_AREA), alpha=0.7)
                Image.fromarray(twin).save(root / name / f"twin_of_{i}.png")
    return root


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def folds_of(folder: Path) -> dict[str, str]:
    return {row["ID"]: row["fold"] for row in table(folder / "folds.csv")}


@pytest.mark.parametrize("kind", [("stratified", "--folds.n_splits", "2"), ("holdout",)])
def test_copies_never_stand_on_both_sides_of_a_fold(root: Path, tmp_path: Path, kind: tuple[str, ...]) -> None:
    folder = train_run.run_all("numpy", audited(root, tmp_path, *PLAIN, "--folds.strategy", *kind), NEVER)
    fold = folds_of(folder)
    assert all(fold[f"a/{i}.png"] == fold[f"a/twin_of_{i}.png"] for i in range(10))
    parted = train_run.run_all("numpy", audited(root, tmp_path, *PLAIN, "--data.audit", "false"), NEVER)
    fold = folds_of(parted)
    assert any(fold[f"a/{i}.png"] != fold[f"a/twin_of_{i}.png"] for i in range(10)), "chance alone parts them"
    assert not (parted / "audit.csv").exists()


def test_what_the_user_decided_is_applied_and_kept(root: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(
        "ID,action,value\na/0.png,drop,\nb/1.png,relabel,c\nc/2.png,rotate,90\nc/3.png,group,x\nc/4.png,group,x\n"
    )
    folder = train_run.run_all(
        "numpy", audited(root, tmp_path / "runs", *PLAIN, "--data.audit_actions", str(file)), NEVER
    )
    assert "20 near duplicate" not in capsys.readouterr().out, "one twin is alone now"
    rows = {row["ID"]: row for row in table(folder / "folds.csv")}
    assert "a/0.png" not in rows and len(rows) == 39
    assert rows["b/1.png"]["target"] == "c" and rows["c/3.png"]["fold"] == rows["c/4.png"]["fold"]
    assert [row["action"] for row in table(folder / "audit_applied.csv")] == [
        "drop",
        "relabel",
        "rotate",
        "group",
        "group",
    ]
    page = (folder / "audit.html").read_text()
    assert "1 drop, 1 relabel, 2 group, 1 rotate" in page
    assert "% of them their label." in page and "may be its own" in page, "a model that was hardly trained"
    found = prepare.prepare(audited(root, tmp_path, *PLAIN, "--data.audit_actions", str(file)))[2]
    turned = train_run.Images(turns=found.turns)(root / "c" / "2.png")
    np.testing.assert_array_equal(turned, np.rot90(scene(202, 60, 80), -1))


def test_an_action_that_cannot_be_done_stops_before_anything_is_written(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("ID,action,value\na/0.png,relabel,d\n")
    wanted = audited(root, tmp_path / "runs", *PLAIN, "--data.audit_actions", str(tmp_path / "mine.csv"))
    with pytest.raises(DataError, match="relabels to 'd', which is no class"):
        train_run.run_all("numpy", wanted, NEVER)
    assert not (tmp_path / "runs").exists()


def test_wrong_labels_are_told_after_training(digits: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(digits, root)
    rows = table(root / "train.csv")
    wrong = next(row for row in rows if row["target"] == "0")
    wrong["target"] = "4"
    lines = [f"{row['ID']},{row['target']}" for row in rows]
    (root / "train.csv").write_text("\n".join(["ID,target", *lines]))
    more = ("--train.epochs", "12", "--optim.lr", "0.1", "--augment.level", "none", "--mining.cap", "0")
    folder = train_run.run_all("numpy", audited(root, tmp_path / "runs", *more), NEVER)
    told = [row for row in table(folder / "audit.csv") if row["finding"] == "label_error"]
    assert wrong["ID"] in [row["ID"] for row in told]
    mine = next(row for row in told if row["ID"] == wrong["ID"])
    assert "labelled 4" in mine["detail"] and "the model says 0" in mine["detail"]
    (folder / "audit.csv").write_text("ID,action\n")
    summary.sum_up(folder, "macro_f1")
    assert (folder / "audit.csv").read_text() == "ID,action\n", "the user's own"
    assert [row for row in table(folder / "audit_2.csv") if row["finding"] == "label_error"] == told


def test_stopping_in_the_audit_leaves_a_run_to_go_on_with(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(root, copy)
    wanted = audited(copy, tmp_path / "runs", *PLAIN)
    with pytest.raises(Interrupted) as stopped:
        train_run.run_all("numpy", wanted, lambda: True)
    assert (stopped.value.folder / run_dir.CONFIG).exists()
    assert train_run.run_all("numpy", wanted, NEVER) == stopped.value.folder


def test_unreadable_images_are_left_to_the_setting_about_them(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(root, copy)
    (copy / "a" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a/0\.png"):
        train_run.run_all("numpy", audited(copy, tmp_path / "runs", *PLAIN), NEVER)
    folder = train_run.run_all("numpy", audited(copy, tmp_path, *PLAIN, "--data.on_bad_image", "skip"), NEVER)
    assert ("a/0.png", "empty") in [(row["ID"], row["finding"]) for row in table(folder / "audit.csv")]
    assert len(sources.load(copy).ids) == 40
