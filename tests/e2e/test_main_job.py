"""The main job by the commands of the README, small: train on both engines, convert, ensemble, submit, report."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ("--model", "convnext_atto", "--weights", "none", "--data.image_size", "32", "--train.batch_size", "16")
QUICK = ("--train.epochs", "1", "--schedule.warmup_epochs", "0", "--train.compile", "off", "--augment.hflip", "false")


def python(*words: str | Path) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torch run of two folds, and an MLX run that goes on from the weights of its first."""
    out = tmp_path_factory.mktemp("runs")
    common = ("--data.root", digits, "--out", out, *SMALL, *QUICK)
    python("train_torch.py", *common, "--name", "torch", "--folds.strategy", "stratified", "--folds.n_splits", "2")
    moved = ("--weights", out / "torch" / "fold_0" / "best", "--folds.file", out / "torch" / "folds.csv")
    python("train_mlx.py", *common, "--name", "mlx", *moved, "--folds.train", "[0]")
    return out


def test_images_to_a_submission_over_all_runtimes(runs: Path, all_digits: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    best = runs / "torch" / "fold_1" / "best"
    python("-m", "convert", best, "--to", "onnx", "coreml", "--out", made, "--verify", all_digits / "test.csv")
    onnx, coreml = made / "fold_1_best.onnx", made / "fold_1_best.mlpackage"
    ensemble = tmp_path / "ensemble.yaml"
    python("-m", "infer", "fit", runs / "torch", "--out", ensemble, "--replace", f"{best}={onnx}")
    assert "fold_1_best.onnx" in ensemble.read_text()

    few = tmp_path / "few"
    (few / "test").mkdir(parents=True)
    images = sorted((all_digits / "test").iterdir())[:12]
    for image in images:
        shutil.copy(image, few / "test")
    members = (runs / "torch" / "fold_0" / "best", runs / "mlx" / "fold_0" / "best", onnx, coreml)
    out = tmp_path / "submission.csv"
    python("-m", "infer", "--member", *members, "--images", few / "test", "--tta", "shifts", "--out", out)
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["ID"] for row in rows] == [image.name for image in images]
    assert {row["target"] for row in rows} <= set("0123456789")

    page = tmp_path / "report.html"
    python("-m", "training", "report", runs / "torch", runs / "mlx", "--ensemble", ensemble, "--out", page)
    assert "fold_1_best.onnx" in page.read_text()


def test_the_same_checkpoint_answers_alike_on_both_engines(runs: Path, all_digits: Path) -> None:
    import numpy as np

    from infer import load

    images = sorted((all_digits / "test").iterdir())[:8]
    best = runs / "torch" / "fold_0" / "best"
    torch, mlx = (load(f"{best}@{engine}").predict(images).probabilities for engine in ("torch", "mlx"))
    np.testing.assert_allclose(torch, mlx, atol=1e-5)
