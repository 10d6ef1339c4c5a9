"""Four processes search together, on an SQLite file and on a real PostgreSQL server; one of them is killed."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest

import tests.numpy_engine  # noqa: F401 - which registers it
from backends import installed
from config.errors import CheckpointError, ConfigError
from tests.e2e.postgres import server
from tests.e2e.workers import stands_still, works
from tests.processes import fresh
from training.campaign import tune_storage

FRESH = fresh("training.campaign.pipeline", "training.campaign.tune_plot", "tests.numpy_engine", "optuna")
TUNE = """
model: convnext_atto
weights: none
folds: {strategy: stratified, n_splits: 2}
data: {image_size: 16, workers: 1, audit: false}
train: {epochs: 3, batch_size: 8}
augment: {level: none}
tune:
  trials: 5
  pruner: none
  space:
    optim.lr: {choices: [0.001, 0.01]}
    train.batch_size: {choices: [8, 16]}
"""


@pytest.fixture(params=["a file", "PostgreSQL"])
def storage(request: pytest.FixtureRequest) -> Iterator[str]:
    """The value of tune.storage."""
    if request.param == "a file":
        yield "null"
        return
    with postgres() as url:
        yield url


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a server's data base, where there are a server and a driver."""
    if not (installed("pg8000") or installed("psycopg")):
        pytest.skip('no driver for PostgreSQL is installed: pip install -e ".[postgres]"')
    with server() as url:
        yield url


def study(storage: str, folder: Path) -> optuna.Study:
    opened = tune_storage.opened(storage if storage != "null" else f"sqlite:///{folder / 'tune' / 'study.db'}")
    (name,) = optuna.get_all_study_names(opened)
    return optuna.load_study(study_name=name, storage=opened)


def test_a_killed_processs_trial_is_tried_again_and_none_is_lost_or_done_twice(
    storage: str, digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "tune.yaml").write_text(TUNE)
    given = ["--config", str(tmp_path / "tune.yaml"), "--data.root", str(digits), "--out", str(tmp_path / "runs")]
    given += ["--name", "shared", "--mode", "tune", "--tune.storage", storage]
    folder = tmp_path / "runs" / "shared"
    victim = FRESH.Process(target=stands_still, args=(given,))
    victim.start()
    while not list(folder.glob("tune/*/*/fold_0/step_*")):
        assert victim.is_alive()
        time.sleep(0.05)
    others = [FRESH.Process(target=works, args=(given,)) for _ in range(3)]
    for process in others:
        process.start()
    while len(list(folder.glob("tune/*/*/fold_0/result.yaml"))) < 2:
        assert all(process.is_alive() for process in others)
        time.sleep(0.05)
    os.kill(victim.pid or 0, signal.SIGKILL)
    victim.join()
    for process in others:
        process.join(200)
        assert process.exitcode == 0
    trials = study(storage, folder).trials
    states = Counter(one.state.name for one in trials)
    assert states == {"COMPLETE": 5, "FAIL": 1}
    (dead,) = (one for one in trials if one.state.name == "FAIL")
    assert any(one.params == dead.params for one in trials if one.number > dead.number)
    for place in folder.glob("tune/*/*/fold_0"):
        epochs = [line.partition(",")[0] for line in (place / "history.csv").read_text().splitlines()]
        assert epochs == ["epoch", "1", "2", "3"], "equal trials are not trained over each other"
    assert len(list(folder.glob("train_optimized_*.yaml"))) == 1


def test_a_server_that_goes_away_is_one_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    with postgres() as url:
        monkeypatch.setenv("SOMEBODY", "tandem")
        storage = url.replace("tandem@", "$SOMEBODY@")
        found = optuna.create_study(storage=tune_storage.opened(storage))
    gone = pytest.raises(CheckpointError, match=r"\$SOMEBODY@.* does not answer any more")
    with gone as caught, tune_storage.lasting(storage):
        found.optimize(lambda one: one.suggest_float("x", 0, 1), n_trials=1)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"\$SOMEBODY@.* cannot be used"):
        tune_storage.opened(storage)
