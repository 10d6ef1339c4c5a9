"""Whole runs in several processes: the loss curves of one, a stop that all follow, a resume with another count."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from backends.group import ALONE
from tests.distributed import cases
from tests.distributed.ranks import together
from tests.unit.test_campaign import final
from training.run import results

COLUMNS = ("train_loss", "log_loss", "accuracy", "macro_f1", "corrupted_log_loss")


def words(root: Path, out: Path, *more: str) -> list[str]:
    """A network without BatchNorm and dropout; the images of an epoch do not fill its batches, and those that validate
    are not divided by the processes."""
    given = ["--data.root", str(root), "--out", str(out), "--model", "test_convnext", "--weights", "none"]
    given += ["--data.image_size", "32", "--train.batch_size", "12", "--train.epochs", "3", "--optim.lr", "1e-3"]
    given += ["--train.micro_batch", "1", "--ema.decay", "0.9", "--mix.mixup", "0.4", "--mix.cutmix", "0.5"]
    given += ["--optim.clip_norm", "1", "--mining.cap", "0.3", "--mining.start_epoch", "1", "--swa.epochs", "2"]
    given += ["--augment.level", "minimal", "--data.workers", "1", "--data.audit", "false", "--data.processes", "0"]
    return [*given, "--folds.val_fraction", "0.25", *more]


def curve(folder: Path) -> list[list[float]]:
    with (folder / "fold_0" / "history.csv").open(newline="") as stream:
        return [[float(row[name]) for name in COLUMNS if name in row] for row in csv.DictReader(stream)]


@pytest.fixture(scope="module")
def alone(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.run(ALONE, words(digits, tmp_path_factory.mktemp("one")))


@pytest.mark.parametrize("count", [2, 4])
def test_the_loss_curves_are_those_of_one_process(count: int, alone: Path, digits: Path, tmp_path: Path) -> None:
    folders = together(count, cases.run, words(digits, tmp_path))
    assert len(set(folders)) == 1
    np.testing.assert_allclose(curve(folders[0]), curve(alone), rtol=1e-5)
    assert final(folders[0]).keys() == final(alone).keys()
    with np.load(folders[0] / "fold_0" / "oof.npz") as oof, np.load(alone / "fold_0" / "oof.npz") as expected:
        np.testing.assert_array_equal(oof["ids"], expected["ids"])
        np.testing.assert_allclose(oof["logits"], expected["logits"], rtol=1e-3, atol=1e-4)
    assert len(results.starts(folders[0])) == 1, "one process writes"


def test_a_stop_that_one_is_asked_for_stops_all_and_one_process_goes_on(
    alone: Path, digits: Path, tmp_path: Path
) -> None:
    stopped = together(2, cases.stopped, words(digits, tmp_path), 6)
    assert stopped == [str(next(tmp_path.glob("*")))] * 2
    assert len(curve(Path(stopped[0]))) == 1, "in the second epoch"
    folder = cases.run(ALONE, words(digits, tmp_path))
    assert str(folder) == stopped[0]
    np.testing.assert_allclose(curve(folder), curve(alone), rtol=1e-5)


def test_all_take_the_images_at_a_time_that_fit_into_the_least_memory(
    alone: Path, digits: Path, tmp_path: Path
) -> None:
    given = words(digits, tmp_path, "--train.micro_batch", "auto")
    assert together(2, cases.run_in_little_memory, given, 3) == ["3", "3"]
    np.testing.assert_allclose(curve(next(tmp_path.glob("*"))), curve(alone), rtol=1e-5)
