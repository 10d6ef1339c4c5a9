"""Whole runs on the NumPy engine: the loop, its artefacts, exact resume, and refusals, with no framework."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from backends.contract import Batch, MixPlan, StepHyperparams, StepResult
from config import load
from config.errors import CheckpointError, ConfigError, DataError, Diverged, Interrupted
from config.schema import Settings
from models.weights import loading
from tests.numpy_engine import session
from training.loop import checkpoint
from training.run import results, run_dir, train_run

NEVER: Callable[[], bool] = lambda: False  # noqa: E731


def settings(root: Path, out: Path, *more: str) -> Settings:
    words = ["--data.root", str(root), "--out", str(out), "--model", "convnext_atto", "--weights", "none"]
    words += ["--data.image_size", "16", "--train.epochs", "3", "--train.batch_size", "8", "--optim.lr", "0.01"]
    words += ["--folds.strategy", "stratified", "--folds.n_splits", "2", "--mix.mixup", "0.4", "--ema.decay", "0.9"]
    words += [
        "--data.workers",
        "2",
        "--mining.cap",
        "0.3",
        "--mining.start_epoch",
        "1",
        "--sampling.kind",
        "square_root",
    ]
    words += ["--sampling.oversample_classes", "[3]", "--sampling.oversample_to", "9"]
    words += ["--data.audit", "false"]  # which asks whether to stop, too: the tests count the questions of the loop
    return load.parse([*words, *more], prog="test")


class StopAfter:
    """Asks to stop at the n-th question."""

    def __init__(self, questions: int):
        self.left = questions

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def final(folder: Path) -> dict[str, np.ndarray]:
    """Everything that must be equal: weights, EMA, optimizer of each fold's last checkpoint, best weights, OOF."""
    found = {}
    for fold in sorted(folder.glob("fold_*/")):
        last = checkpoint.newest(fold)
        assert last is not None
        for file in [*last.glob("*.safetensors"), fold / "best" / "model.safetensors"]:
            arrays, _ = loading.read(file)
            found.update({f"{fold.name}/{file.parent.name}/{file.name}/{k}": v for k, v in arrays.items()})
        with np.load(fold / "oof.npz") as oof:
            found.update({f"{fold.name}/oof/{k}": oof[k] for k in oof.files})
    return found


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run.run_all("numpy", settings(digits, tmp_path_factory.mktemp("runs")), NEVER)


def test_a_run_leaves_what_the_design_says(finished: Path, digits: Path) -> None:
    for name in ("config.yaml", "environment.json", "folds.csv", "fold_results.yaml", "report.html"):
        assert (finished / name).exists(), name
    assert {p.name for p in (finished / "plots").iterdir()} == {"curves.png", "confusion.png"}
    for fold in ("fold_0", "fold_1"):
        assert (finished / fold / "history.csv").read_text().count("\n") == 4
        assert (finished / fold / "best" / "manifest.json").exists()
    ids, logits, _ = results.oof(finished)
    assert len(set(ids)) == len(ids) == 80
    assert logits.shape == (80, 10)
    assert logits.dtype == np.float32
    summary = yaml.safe_load((finished / "fold_results.yaml").read_text())
    f1 = [fold["macro_f1"] for fold in summary["folds"]]
    assert summary["mean"]["macro_f1"] == pytest.approx(np.mean(f1))
    assert summary["std"]["macro_f1"] == pytest.approx(np.std(f1, ddof=1))
    assert f1[summary["best_fold"]] == max(f1)
    card = results.card(finished)
    assert card.class_names == tuple("0123456789")
    assert card.preprocessing.size == 16


def test_the_reports_pictures_are_inside_it(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') > 0
    assert page.count("src=") == page.count('src="data:image/jpeg;base64,')
    assert "http://" not in page
    assert "https://" not in page


@pytest.mark.parametrize("questions", [1, 7, 13, 26])
def test_a_stopped_run_goes_on_bit_for_bit(questions: int, finished: Path, digits: Path, tmp_path: Path) -> None:
    wanted = settings(digits, tmp_path)
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", wanted, StopAfter(questions))
    folder = train_run.run_all("numpy", wanted, NEVER)
    assert len(list(tmp_path.iterdir())) == 1, "the same command goes on with the same run"
    one, other = final(finished), final(folder)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_a_finished_run_is_not_trained_again(finished: Path, digits: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")}
    assert train_run.run_all("numpy", settings(digits, finished.parent), NEVER) == finished
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")}


def test_a_name_that_is_taken_by_other_settings_is_refused(finished: Path, digits: Path) -> None:
    with pytest.raises(ConfigError, match=r"another run has this name \(seed: 0, now 5\)"):
        train_run.run_all("numpy", settings(digits, finished.parent, "--name", finished.name, "--seed", "5"), NEVER)


def test_resuming_with_other_settings_says_what_differs(finished: Path, digits: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim\.weight_decay"):
        wanted = settings(digits, finished.parent, "--resume", str(finished), "--optim.weight_decay", "0.3")
        train_run.run_all("numpy", wanted, NEVER)


def test_two_processes_cannot_work_in_one_folder(tmp_path: Path) -> None:
    with (
        run_dir.locked(tmp_path),
        pytest.raises(CheckpointError, match=r"process .* is working in this folder"),
        run_dir.locked(tmp_path),
    ):
        pass


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(digits: Path, tmp_path: Path) -> None:
    wanted = settings(digits, tmp_path, "--folds.train", "[0]")
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", wanted, StopAfter(14))
    fold = next(tmp_path.glob("*/fold_0"))
    damaged = checkpoint.steps(fold)[-1]
    file = damaged / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    train_run.run_all("numpy", wanted, NEVER)
    assert (fold / (damaged.name + ".corrupt")).exists()


def test_no_whole_checkpoint_is_an_error_not_a_fresh_start(digits: Path, tmp_path: Path) -> None:
    wanted = settings(digits, tmp_path, "--folds.train", "[0]")
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", wanted, StopAfter(1))
    for path in checkpoint.steps(next(tmp_path.glob("*/fold_0"))):
        (path / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        train_run.run_all("numpy", wanted, NEVER)


def test_old_checkpoints_are_pruned_to_the_setting(finished: Path) -> None:
    assert len(checkpoint.steps(finished / "fold_0")) == 3


def test_an_unreadable_image_is_found_before_training(digits: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(digits, root)
    victim = next((root / "train").iterdir())
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(DataError, match=victim.name):
        train_run.run_all("numpy", settings(root, tmp_path / "runs"), NEVER)
    assert not (tmp_path / "runs").exists()


def test_a_fold_that_is_not_there_is_refused(finished: Path, digits: Path, tmp_path: Path) -> None:
    more = ["--folds.file", str(finished / "folds.csv"), "--folds.train", "[7]"]
    with pytest.raises(ConfigError, match=r"no fold 7"):
        train_run.run_all("numpy", settings(digits, tmp_path, *more), NEVER)


def test_runs_repeat_for_any_number_of_workers(finished: Path, digits: Path, tmp_path: Path) -> None:
    folder = train_run.run_all("numpy", settings(digits, tmp_path, "--data.workers", "5"), NEVER)
    one, other = final(finished), final(folder)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


class Faulty:
    """Makes the numpy engine's results of the given calls not finite."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, calls: range):
        self.calls, self.seen, self.rates = calls, 0, []
        original, train_step = session.Session.read, session.Session.train_step

        def read(this: session.Session, pending: object) -> StepResult:
            result = original(this, pending)
            self.seen += 1
            return result._replace(finite=self.seen not in self.calls)

        def step(this: session.Session, batch: Batch, mix: MixPlan | None, knobs: StepHyperparams) -> object:
            self.rates.append(knobs.lr)
            return train_step(this, batch, mix, knobs)

        monkeypatch.setattr(session.Session, "read", read)
        monkeypatch.setattr(session.Session, "train_step", step)


WATCHED = ("--folds.train", "[0]", "--watchdog.max_skipped", "2", "--schedule.name", "constant")


def test_updates_that_are_not_finite_are_skipped_and_counted(digits, tmp_path, monkeypatch) -> None:
    Faulty(monkeypatch, range(3, 4))
    folder = train_run.run_all("numpy", settings(digits, tmp_path, *WATCHED), NEVER)
    with (folder / "fold_0" / "history.csv").open(newline="") as stream:
        assert [row["skipped"] for row in csv.DictReader(stream)] == ["1", "0", "0"]


def test_too_many_in_a_row_go_back_at_half_the_rate(digits, tmp_path, monkeypatch) -> None:
    faulty = Faulty(monkeypatch, range(3, 5))
    train_run.run_all("numpy", settings(digits, tmp_path, *WATCHED, "--schedule.warmup_epochs", "0"), NEVER)
    assert faulty.rates[0] == pytest.approx(0.01)
    assert faulty.rates[-1] == pytest.approx(0.005)


def test_a_run_that_never_recovers_stops_and_names_the_images(digits, tmp_path, monkeypatch) -> None:
    Faulty(monkeypatch, range(3, 100))
    with pytest.raises(Diverged, match=r"going back 3 times .*digit_.*png"):
        train_run.run_all("numpy", settings(digits, tmp_path, *WATCHED), NEVER)


def test_a_frozen_start_with_micro_batches_goes_on_bit_for_bit(digits: Path, tmp_path: Path) -> None:
    more = ["--model", "vit_tiny_patch16_224", "--optim.freeze_epochs", "2", "--train.micro_batch", "4"]
    more += ["--optim.name", "lion", "--folds.train", "[0]"]
    one, other = settings(digits, tmp_path / "a", *more), settings(digits, tmp_path / "b", *more)
    whole = train_run.run_all("numpy", one, NEVER)
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", other, StopAfter(3))
    folder = train_run.run_all("numpy", other, NEVER)
    for name, value in final(whole).items():
        np.testing.assert_array_equal(value, final(folder)[name], err_msg=name)
    last = checkpoint.newest(folder / "fold_0")
    assert last is not None
    state, _ = checkpoint.load(last)
    assert state.frozen_steps * 3 == state.step * 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ("--train.batch_size", "100", "--train.micro_batch", "50"),
            r"train\.micro_batch 50 does not divide the batch",
        ),
        (("--optim.freeze_epochs", "1"), r"optim\.freeze_epochs"),
        (("--train.checkpoint_gradients", "true"), r"train\.checkpoint_gradients"),
        (("--optim.name", "muon"), "muon"),
    ],
)
def test_what_an_engine_cannot_do_is_said_before_training(
    more: tuple[str, ...], said: str, digits: Path, tmp_path: Path
) -> None:
    wanted = settings(digits, tmp_path, "--folds.train", "[0]", *more)
    with pytest.raises(ConfigError, match=said):
        train_run.run_all("numpy", wanted, NEVER)
    assert not list(tmp_path.glob("*/fold_0/step_*"))
