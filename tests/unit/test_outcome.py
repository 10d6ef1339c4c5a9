"""How a training that ended without a result is told from one that was stopped: on the board, and by the next start."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.errors import Diverged, Interrupted, TandemError
from data.audit.audit import Stopped
from tests.unit.test_campaign import NEVER, StopAfter, settings
from training import cli
from training.board.runs import Fold, Runs
from training.loop import trainer
from training.report import summary
from training.run import train_run
from training.run.outcome import FAILED


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in (summary.plots, summary.report):
        monkeypatch.setattr(part, "write", lambda *_: None)


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Have the next fold that is trained end in an error after its epochs."""
    whole, left = trainer.Trainer.run, [error]

    def broken(self: trainer.Trainer):  # type: ignore[no-untyped-def]
        end = whole(self)
        if left:
            raise left.pop()
        return end

    monkeypatch.setattr(trainer.Trainer, "run", broken)


def first_fold(root: Path, kind: str = "run") -> Fold:
    """Of the only run below `root`, whose state is that of this fold."""
    (run,) = (run for run in Runs([root]).all().values() if run.kind == kind)
    assert run.state == run.folds[0].state
    return run.folds[0]


@pytest.mark.parametrize(
    ("error", "reason"), [(Diverged("nothing was finite"), "nothing was finite"), (MemoryError("x"), "MemoryError: x")]
)
def test_a_run_that_ended_in_an_error_has_failed_until_it_is_trained_again(
    error: Exception, reason: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = settings(digits, tmp_path, "--folds.train", "[0]")
    failing(monkeypatch, error)
    with pytest.raises(type(error)):
        train_run.run_all("numpy", wanted, NEVER)
    found = first_fold(tmp_path)
    assert (found.state, found.reason) == ("failed", reason)
    train_run.run_all("numpy", wanted, NEVER)
    assert first_fold(tmp_path).state == "finished"
    assert not list(tmp_path.rglob(FAILED))


def test_a_run_that_its_user_stopped_is_interrupted_also_after_a_failure(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = settings(digits, tmp_path, "--folds.train", "[0]")
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", wanted, StopAfter(7))
    assert first_fold(tmp_path).state == "interrupted"
    with monkeypatch.context() as patched, pytest.raises(Diverged):
        failing(patched, Diverged("nothing was finite"))
        train_run.run_all("numpy", wanted, NEVER)
    assert first_fold(tmp_path).state == "failed"
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", wanted, StopAfter(0))
    assert first_fold(tmp_path).state == "interrupted"


@pytest.mark.parametrize("error", [Diverged("nothing was finite"), TandemError("an image is gone")])
def test_a_fold_of_a_campaign_that_failed_is_left_out_only_by_a_fault_of_its_own(
    error: Exception, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--data.root", str(digits), "--out", str(tmp_path), "--model", "convnext_atto", "--weights", "none"]
    words += ["--data.image_size", "16", "--data.workers", "1", "--train.batch_size", "1", "--train.epochs", "1"]
    words += ["--data.audit", "false", "--mode", "train"]
    own = isinstance(error, Diverged)
    failing(monkeypatch, error)  # a batch of one image cannot be halved, so that there is no second try
    assert cli.main("numpy", words) == (3 if own else 1)
    found = first_fold(tmp_path)
    assert (found.state, found.reason) == ("failed", str(error))
    assert cli.main("numpy", words) == (3 if own else 0)


def test_a_run_that_is_stopped_before_its_first_update_does_not_claim_that_anything_is_saved(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Stopped

    monkeypatch.setattr("training.run.audit.audit", stop)
    words = ["--data.root", str(digits), "--out", str(tmp_path), "--model", "convnext_atto", "--weights", "none"]
    assert cli.main("numpy", [*words, "--data.image_size", "16"]) == 143
    run = next(tmp_path.iterdir())
    expected = "stopped before the first update; nothing is trained yet. Go on with: python train_numpy.py --resume"
    assert f"{expected} {run}" in capsys.readouterr().out
