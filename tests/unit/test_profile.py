"""`--profile N`: a trace of N updates that a browser opens, and the same training with it as without."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from backends.contract import SessionConfig
from backends.mlx import session as mlx_session
from config.errors import BackendUnavailable, ConfigError
from tests import tiny
from tests.unit.test_campaign import NEVER, final, settings
from training.loop.profiling import Recorder
from training.run import train_run

SMALL = (
    "--model",
    "test_resnet",
    "--folds.train",
    "[0]",
    "--data.image_size",
    "32",
    "--train.epochs",
    "2",
    "--train.batch_size",
    "4",
)


def test_a_trace_holds_the_wanted_updates_and_changes_nothing(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TANDEM_TORCH_DEVICE", "cpu")
    plain = train_run.run_all("torch", settings(digits, tmp_path / "plain", *SMALL), NEVER)
    traced = train_run.run_all("torch", settings(digits, tmp_path / "traced", *SMALL, "--profile", "3"), NEVER)
    assert "profile of 3 updates" in capsys.readouterr().out
    folder = traced / "fold_0" / "profile"
    events = Counter(event.get("name") for event in json.loads((folder / "trace.json").read_text())["traceEvents"])
    assert events["train_step"] == 3
    assert events["aten::convolution_backward"] >= 3
    assert "aten::" in (folder / "table.txt").read_text()
    one, other = final(plain), final(traced)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


class Tracing:
    """A session that only says when it is traced."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def profile(self, folder: Path) -> Tracing:
        return self

    def __enter__(self) -> None:
        self.told.append("begin")

    def __exit__(self, *_: object) -> None:
        self.told.append("end")

    def train(self, recorder: Recorder, updates: int) -> list[str]:
        for _ in range(updates):
            recorder.before_update()
            self.told.append("update")
        recorder.close()
        return self.told


@pytest.mark.parametrize(("left", "before", "traced"), [(100, 5, 3), (6, 3, 3), (2, 0, 2)])
def test_the_first_updates_are_left_out_where_there_are_others(
    left: int, before: int, traced: int, tmp_path: Path
) -> None:
    session = Tracing()
    told = session.train(Recorder(3, left, session, tmp_path, lambda _: None), left)
    assert told.index("begin") == before
    assert told.index("end") - told.index("begin") - 1 == traced
    assert session.told.count("begin") == session.told.count("end") == 1


def test_a_training_that_ends_before_its_trace_says_so(tmp_path: Path) -> None:
    session, said = Tracing(), []
    assert "begin" not in session.train(Recorder(3, 100, session, tmp_path, said.append), 4)
    assert said == ["profile: no trace, as only 4 updates were left"]


@pytest.mark.skipif(mx.metal.is_available(), reason="Metal can capture")
def test_mlx_without_metal_says_so_at_once(tmp_path: Path) -> None:
    session = mlx_session.open(tiny.spec("resnet"), None, SessionConfig(compile=False))
    with pytest.raises(BackendUnavailable, match="Metal"):
        session.profile(tmp_path)


def test_an_engine_without_traces_says_so_before_it_trains(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no traces"):
        train_run.run_all("numpy", settings(digits, tmp_path, "--folds.train", "[0]", "--profile", "2"), NEVER)
    assert not list(tmp_path.glob("*/fold_0/step_*"))
