"""Training from Python: settings as on the command line, errors as exceptions, and what follows from a run."""

from __future__ import annotations

import builtins
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score

import backends
import infer
from config import load
from config.errors import BackendUnavailable, CheckpointError, ConfigError, DataError
from training import Run, cli, load_run, train
from training.run.progress import Progress

SMALL = {"image_size": 16, "batch_size": 16, "config": "demo", "engine": "numpy"}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> Run:
    return train("convnext_atto", digits, epochs=2, folds=2, out=tmp_path_factory.mktemp("runs"), **SMALL)


@pytest.fixture(scope="module")
def images(digits) -> list[Path]:
    return sorted((digits / "train").iterdir())[:5]


def test_settings_are_those_of_the_same_command(monkeypatch, tmp_path) -> None:
    asked = {}

    def stop(engine, settings, _):
        asked["python"] = settings
        raise DataError("enough")

    monkeypatch.setattr("training.run.train_run.run_all", stop)
    with pytest.raises(DataError, match="enough"):
        train(
            "resnet26d",
            tmp_path,
            epochs=np.int64(3),
            image_size=64,
            batch_size=8,
            lr=1e-3,
            folds=4,
            config="finetune",
            engine="torch",
            settings={"seed": 7, "data": {"mean": (0.5, 0.4, 0.3)}},
            optim={"name": "sgd"},
            **{"augment.level": "minimal", "schedule.warmup_epochs": 0},
        )
    words = f"--config finetune --model resnet26d --data.root {tmp_path} --train.epochs 3 --data.image_size 64"
    words += (
        " --optim.lr 1e-3 --train.batch_size 8 --folds.strategy stratified --folds.n_splits 4 --seed 7 --optim.name sgd"
    )
    command = [
        *words.split(),
        "--data.mean",
        "[0.5, 0.4, 0.3]",
        "--augment.level",
        "minimal",
        "--schedule.warmup_epochs",
        "0",
    ]
    assert asked["python"] == load.parse(command, prog="test")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"epochs": 0}, ConfigError, r"train\.epochs: found 0 \(train\(\)\)"),
        ({"learning_rat": 1}, ConfigError, r"learning_rat: no such setting \(train\(\)\)"),
        ({"epochs": 1, "train.epochs": 2}, ConfigError, r"train\.epochs: given twice"),
        ({"optim": "sgd"}, ConfigError, "optim: is a section"),
        ({"optim.lr.x": 1}, ConfigError, "no such setting"),
        ({"name": "a\0b"}, ConfigError, "UTF-8"),
        ({"config": "dem"}, ConfigError, "did you mean demo"),
        ({"model": "convnext_atmo"}, ConfigError, "did you mean convnext_atto"),
        ({"engine": "jax"}, BackendUnavailable, "there are torch and mlx"),
        ({"resume": "nowhere"}, ConfigError, "nowhere"),
    ],
)
def test_what_is_wrong_is_an_exception(given, error, words, tmp_path) -> None:
    with pytest.raises(error, match=words):
        train(**{"model": "convnext_atto", "data": tmp_path, "out": tmp_path / "runs", **given})
    assert not (tmp_path / "runs").exists()


def test_a_data_set_that_is_not_there_is_a_data_error(tmp_path) -> None:
    with pytest.raises(DataError, match="missing"):
        train("convnext_atto", tmp_path / "missing", out=tmp_path, **SMALL)


def test_the_run_is_the_one_of_the_command_line(run, digits, tmp_path) -> None:
    words = f"--config demo --model convnext_atto --data.root {digits} --data.image_size 16 --train.batch_size 16"
    words += f" --train.epochs 2 --folds.n_splits 2 --out {tmp_path}"
    assert cli.main("numpy", words.split()) == 0
    (other,) = tmp_path.iterdir()
    for fold in run.folds:
        mine, theirs = (np.load(folder / f"fold_{fold}" / "oof.npz") for folder in (run.folder, other))
        assert np.array_equal(mine["logits"], theirs["logits"])


def test_the_same_call_returns_the_finished_run_and_its_folder_opens_it_later(run, digits) -> None:
    again = train("convnext_atto", digits, epochs=2, folds=2, out=run.folder.parent, **SMALL)
    assert again == run == load_run(str(run.folder))
    assert run.folds == (0, 1)
    assert run.class_names == tuple("0123456789")
    assert [row["epoch"] for row in run.history(1)] == [1, 2]
    assert f"accuracy {run.results['mean']['accuracy']:.4f}" in repr(run)


def test_a_finished_run_trains_on(digits, tmp_path) -> None:
    first = train("convnext_atto", digits, epochs=1, folds=2, out=tmp_path, **SMALL)
    more = train(resume=first.folder, epochs=2, resume_anyway=True, engine="numpy")
    assert more == first
    assert len(more.history(0)) == 2


def test_a_folder_that_is_no_finished_run_is_said_to_be_none(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no run"):
        load_run(tmp_path)
    (tmp_path / "config.yaml").write_text("data: {root: .}\n")
    with pytest.raises(CheckpointError, match="not finished"):
        load_run(tmp_path)


def test_predictions_are_the_mean_of_the_folds_for_every_form_of_images(run, images) -> None:
    expected = []
    for path in run.checkpoints:
        with infer.load(path) as one:
            expected.append(one.predict(images).probabilities)
    found = run.predict(images)
    np.testing.assert_allclose(found.probabilities, np.mean(expected, axis=0), atol=1e-6)
    assert found.ids == [str(path) for path in images]
    assert found.labels == [found.class_names[i] for i in found.probabilities.argmax(axis=1)]
    pictures = [Image.open(path).convert("RGB") for path in images]
    for form in (pictures, [np.asarray(picture) for picture in pictures], np.stack(pictures), map(str, images)):
        np.testing.assert_array_equal(run.predict(form).probabilities, found.probabilities)
    one = run.predict(str(images[0]))
    assert (len(one), one.ids) == (1, [str(images[0])])
    np.testing.assert_allclose(one.probabilities, found.probabilities[:1], atol=1e-6)
    assert run.predict([]).probabilities.shape == (0, 10)


def test_a_folder_is_predicted_by_name_and_what_cannot_be_read_is_left_out_on_request(run, images, tmp_path) -> None:
    for number, path in enumerate(images[:2]):
        (tmp_path / f"{number}.png").write_bytes(path.read_bytes())
    (tmp_path / "1a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1a\.png"):
        run.predict(tmp_path)
    found = run.predict(tmp_path, on_bad_image="skip")
    assert found.ids == ["0.png", "1.png"]
    assert list(found.skipped) == ["1a.png"]
    np.testing.assert_allclose(found.probabilities, run.predict(images[:2]).probabilities, atol=1e-6)
    assert [row["id"] for row in found.rows()] == found.ids
    assert found.rows()[1]["label"] in found._repr_html_()
    assert f"1.png: {found.labels[1]}" in repr(found)
    with pytest.raises(DataError, match="not exist"):
        run.predict(tmp_path / "absent")
    with pytest.raises(TypeError, match="predict takes"):
        run.predict(7)


def test_evaluate_scores_other_images_and_refuses_those_that_were_trained_on(run, digits) -> None:
    with pytest.raises(DataError, match="out-of-fold"):
        run.evaluate()
    scores = run.evaluate(digits)
    assert len(scores.ids) == 80
    assert len(repr(scores)) < 250 and f"80 images: accuracy {scores.accuracy:.4f}" in repr(scores)
    labels = [run.class_names[target] for target in scores.targets]
    assert scores.accuracy == accuracy_score(labels, run.predict(scores.paths).labels)
    part = run.evaluate({"root": digits, "classes": ["3", "5"]})
    assert len(part.ids) == 16
    assert run.evaluate(split="train").accuracy == scores.accuracy


def test_report_writes_the_page_anew(run) -> None:
    page = run.folder / "report.html"
    page.unlink()
    assert run.report() == page
    assert run.folder.name in page.read_text()


@pytest.fixture
def interrupted(monkeypatch):
    """Have the first step of a training interrupt it as many times as is set."""
    times = [1]
    step = Progress._step

    def pressed(self, *words):
        step(self, *words)
        for _ in range(times[0]):
            times[0] -= 1
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Progress, "_step", pressed)
    return times


def test_an_interrupt_saves_says_how_to_go_on_and_leaves_the_handlers_alone(run, digits, tmp_path, interrupted) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=r"train\(resume='.*'\)") as stopped:
        train("convnext_atto", digits, epochs=2, folds=2, out=tmp_path, **SMALL)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    (folder,) = tmp_path.iterdir()
    assert str(folder) in str(stopped.value)
    went_on = train(resume=folder, engine="numpy")
    for fold in run.folds:
        mine, theirs = (np.load(one.folder / f"fold_{fold}" / "oof.npz") for one in (went_on, run))
        assert np.array_equal(mine["logits"], theirs["logits"])


def test_a_second_interrupt_stops_at_once_and_the_process_lives(digits, tmp_path, interrupted) -> None:
    interrupted[0] = 2
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train("convnext_atto", digits, epochs=2, folds=2, out=tmp_path, **SMALL)
    assert "resume" not in str(stopped.value)
    assert signal.getsignal(signal.SIGINT) is before
    (folder,) = tmp_path.iterdir()
    assert train(resume=folder, engine="numpy").folds == (0, 1), "the locks are free"


def test_a_thread_trains_and_leaves_signals_to_the_program(digits, tmp_path) -> None:
    found = []
    thread = threading.Thread(
        target=lambda: found.append(train("convnext_atto", digits, epochs=1, folds=2, out=tmp_path, **SMALL))
    )
    thread.start()
    thread.join(60)
    assert found[0].folds == (0, 1)


def test_a_notebook_gets_one_line_a_fold(digits, tmp_path, monkeypatch, capfd) -> None:
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)
    monkeypatch.setattr(sys, "argv", ["/opt/ipykernel_launcher.py", "-f", "kernel-1.json"])
    done = train("convnext_atto", digits, epochs=8, folds=2, out=tmp_path, **SMALL)
    printed, bars = capfd.readouterr()
    assert "epoch 8/8" in bars
    assert bars.count("\n") == 2
    assert "accuracy" not in printed
    page = done.report().read_text()
    assert "ipykernel" not in page
    assert f"train_numpy.py --config {done.folder / 'config.yaml'}" in page


def test_the_engine_is_one_that_is_installed(monkeypatch, tmp_path) -> None:
    asked = []

    def stop(engine, *_):
        asked.append(engine)
        raise DataError("enough")

    monkeypatch.setattr("training.run.train_run.run_all", stop)
    for there in ({"torch", "timm"}, {"mlx"}):
        monkeypatch.setattr(backends, "installed", lambda name, there=there: name in there)
        with pytest.raises(DataError):
            train("convnext_atto", tmp_path)
    assert asked == ["torch", "mlx"]


def test_importing_training_waits_for_nothing() -> None:
    code = "import sys, training; training.load_run; print({'numpy', 'pydantic', 'scipy', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()", done.stderr
