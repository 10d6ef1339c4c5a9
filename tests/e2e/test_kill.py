"""SIGKILL at random moments, during saves too: nothing is lost beyond the last checkpoint, the result is identical."""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from config import load
from tests.e2e.commands import words
from tests.processes import fresh
from tests.unit.test_campaign import NEVER, final
from training.run import train_run

CLOCKS = ("seconds", "images_per_second", "waiting", "computing", "saving")  # columns that tell times
# Each start is a process of its own, made from one that has imported everything already.
# As tests/conftest.py does, MLX's BLAS first: it is process-wide, and the bits of all runs here must come from one.
FRESH = fresh(
    "backends.mlx", "training.run.train_run", "tests.numpy_engine", "backends.torch.session", "tests.e2e.test_kill"
)


def whole_run(engine: str, given: list[str]) -> None:
    train_run.run_all(engine, load.parse(given, prog="test"), NEVER)


def dies_while_saving(engine: str, given: list[str], operation: str, count: int) -> None:
    """A run that SIGKILL hits at the `count`-th fsync or rename."""
    counted: Callable[..., object] = getattr(os if operation == "fsync" else Path, operation)
    left = count

    def fatal(*arguments: object, **named: object) -> object:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return counted(*arguments, **named)

    setattr(os if operation == "fsync" else Path, operation, fatal)
    whole_run(engine, given)


def killed(target: Callable[..., None], *arguments: object, when: Callable[[], bool] | None = None) -> bool:
    """Whether SIGKILL ended the process, sent as soon as `when` says so or by itself."""
    process = FRESH.Process(target=target, args=arguments)
    process.start()
    while when and process.is_alive():
        if when():
            process.kill()
            break
        process.join(0.001)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), "it ended by itself, in an error"
    return process.exitcode != 0


def soon_after(folder: Path, goal: int, looks: int) -> Callable[[], bool]:
    """True some milliseconds after the checkpoints reached the update `goal`: anywhere, on a machine of any speed."""
    left = looks

    def now() -> bool:
        nonlocal left
        left -= updates(folder) >= goal
        return left < 0

    return now


def updates(folder: Path) -> int:
    """How far the checkpoints of all folds reach; one that is being replaced lies aside as `.previous`."""
    folds = (fold.glob("step_*") for fold in folder.glob("fold_*/"))
    numbers = ([re.fullmatch(r"step_(\d+)(\.previous)?", step.name) for step in steps] for steps in folds)
    return sum(max((int(found[1]) for found in fold if found), default=0) for fold in numbers)


def assert_same(one: Path, other: Path) -> None:
    first, second = final(one), final(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    for fold in one.glob("fold_*/"):
        assert scores(fold) == scores(other / fold.name)


def scores(fold: Path) -> list[list[str]]:
    """`history.csv` without the columns that tell times."""
    rows = [row.split(",") for row in (fold / "history.csv").read_text().splitlines()]
    kept = [i for i, name in enumerate(rows[0]) if name not in CLOCKS]
    return [[row[i] for i in kept] for row in rows]


def test_twenty_kills_change_nothing(digits: Path, tmp_path: Path) -> None:
    common = ["--folds.strategy", "stratified", "--folds.n_splits", "2", "--train.epochs", "25", "--ema.decay", "0.9"]
    common += ["--mix.mixup", "0.4", "--mining.cap", "0.3", "--sampling.kind", "balanced", "--schedule.name", "plateau"]
    undisturbed = words(digits, tmp_path / "undisturbed", *common, "--checkpoint.every_steps", "0")
    assert not killed(whole_run, "numpy", undisturbed)
    given, rng = words(digits, tmp_path, *common), random.Random(20)
    reached, kills = 0, 0
    for attempt in range(20):
        if attempt % 2:
            operation, count = rng.choice([("fsync", rng.randrange(1, 40)), ("rename", rng.randrange(1, 6))])
            kills += killed(dies_while_saving, "numpy", given, operation, count)
        else:
            goal, patience = reached + rng.randrange(9), rng.randrange(20)
            kills += killed(whole_run, "numpy", given, when=soon_after(tmp_path / "run", goal, patience))
        assert updates(tmp_path / "run") >= reached, "a checkpoint was lost"
        reached = updates(tmp_path / "run")
    assert kills == 20, "the run ended before it was killed twenty times"
    assert 0 < reached < 250
    assert not killed(whole_run, "numpy", given)
    assert_same(tmp_path / "undisturbed" / "run", tmp_path / "run")


@pytest.mark.parametrize("engine", ["torch"])
def test_a_killed_network_ends_as_the_undisturbed_one(engine: str, digits: Path, tmp_path: Path) -> None:
    common = ["--train.epochs", "2", "--data.image_size", "32", "--optim.lr", "1e-3", "--drop.path", "0.1"]
    common += ["--ema.decay", "0.9", "--mix.cutmix", "1", "--checkpoint.every_steps", "3"]
    assert not killed(whole_run, engine, words(digits, tmp_path / "undisturbed", *common))  # in a process like theirs
    given = words(digits, tmp_path, *common)
    for operation, count in (("fsync", 20), ("rename", 4), ("fsync", 9)):
        assert killed(dies_while_saving, engine, given, operation, count)
    assert not killed(whole_run, engine, given)
    assert_same(tmp_path / "undisturbed" / "run", tmp_path / "run")
