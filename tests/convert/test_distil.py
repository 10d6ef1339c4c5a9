"""`--distil`: an ensemble's answers, with its weights and temperatures, and a recipe that trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from config import load
from convert import __main__ as command
from data import sources
from ensemble.oof import teacher_file
from infer import load as load_ensemble
from training.run import train_run


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["--data.root", str(digits), "--out", str(tmp_path_factory.mktemp("runs")), "--model", "convnext_atto"]
    words += ["--weights", "none", "--data.image_size", "16", "--train.epochs", "1", "--train.batch_size", "8"]
    words += ["--folds.strategy", "stratified", "--folds.n_splits", "2", "--data.workers", "1"]
    words += ["--augment.hflip", "false", "--schedule.warmup_epochs", "0"]
    return train_run.run_all("numpy", load.parse(words, prog="test"), lambda: False)


def test_the_recipe_teaches_what_the_ensemble_says(run: Path, digits: Path, tmp_path: Path) -> None:
    members = [{"path": str(run / f"fold_{k}" / "best"), "temperature": 2.0 + k, "weight": 1.0 + k} for k in (0, 1)]
    file = tmp_path / "ensemble.yaml"
    file.write_text(yaml.safe_dump({"members": members, "temperature": 0.7, "views": ["original", "vflip"]}))
    out = tmp_path / "dist"
    assert command.main([str(file), "--distil", str(out), "--student", "mobilenetv3_small_050"]) == 0
    student = load.read(out / "student.yaml")
    assert (student.model, student.folds.file, student.train.epochs) == ("mobilenetv3_small_050", run / "folds.csv", 3)
    assert (student.data.root, student.data.image_size, student.augment.hflip) == (digits.resolve(), 16, False)
    assert student.teacher.file is not None
    answers = teacher_file.read(student.teacher.file)
    rows = answers.rows(1)
    pictures = sources.load(digits)
    asked = [k for k, name in enumerate(pictures.ids) if name in rows]
    assert 0 < len(asked) < len(pictures.ids)
    alone = tmp_path / "alone.yaml"
    alone.write_text(yaml.safe_dump({"members": members[1:], "temperature": 0.7, "views": ["original", "vflip"]}))
    with load_ensemble(alone) as runner:
        said = runner.predict([pictures.paths[k] for k in asked]).probabilities
    ours = np.exp(answers.log_probabilities[[rows[pictures.ids[k]] for k in asked]])
    np.testing.assert_allclose(ours, said, atol=1e-6)


def test_what_has_no_answers_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = tmp_path / "full"
    (full / "inside").mkdir(parents=True)
    for words in ([str(run / "fold_0" / "best"), "--distil", str(tmp_path / "x")], [str(run), "--distil", str(full)]):
        assert command.main(words) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "only these have answers" in lines[0]
    assert "not empty" in lines[1]
    assert not (tmp_path / "x").exists()
    assert command.main([str(run), "--distil", str(tmp_path / "y"), "--student", "no_such_model"]) == 2
