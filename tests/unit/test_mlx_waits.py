"""The MLX engine never waits for the device inside an epoch: a result is read when later updates are on their way."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from backends.contract import OptimSpec
from backends.mlx import model
from backends.mlx import session as mlx_session
from benchmarks.steps import step
from tests import tiny
from tests.contract.cases import KNOBS, batch, session
from training.loop import trainer

STEPS = 9


class Numpy:
    """NumPy, but for a note of every MLX array that becomes one of its own, which waits for that array."""

    def __init__(self, events: list[str]):
        self.events = events

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def array(self, value: Any, *rest: Any) -> Any:
        if isinstance(value, mx.array):
            self.events.append("key" if value.dtype == mx.uint32 and value.size == 2 else "wait")
        return np.array(value, *rest)

    asarray = array


def noted(events: list[str], name: str, function: Any) -> Any:
    def call(*given: Any) -> Any:
        events.append(name)
        return function(*given)

    return call


def test_an_epoch_waits_for_nothing_but_old_results(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    one = session("mlx", OptimSpec(ema=True))
    for module in (mlx_session, model):
        monkeypatch.setattr(module, "np", Numpy(events))
    waits = [(mx, "eval"), (mx, "synchronize")]
    waits += [(mx.array, name) for name in ("item", "tolist", "__float__", "__int__", "__bool__")]
    for owner, name in [*waits, (one, "train_step"), (one, "read")]:
        monkeypatch.setattr(owner, name, noted(events, name, getattr(owner, name)))
    marks: list[int] = []  # where the epoch begins, and where validation does

    def clock() -> float:
        marks.append(len(events))
        return 0.0

    monkeypatch.setattr(step, "CLASSES", 5)
    train = step.Repeated(step.pixels(8, 32))
    step.loop_seconds(one, tiny.spec("convnext", num_classes=5), train, STEPS, clock)
    epoch = events[slice(*marks)]
    trained = epoch[epoch.index("train_step") : len(epoch) - epoch[::-1].index("read") + 3]
    assert trained.count("train_step") == trained.count("read") == STEPS
    assert set(trained) <= {"train_step", "key", "read", "wait"}
    steps = reads = 0
    for number, event in enumerate(trained):
        steps, reads = steps + (event == "train_step"), reads + (event == "read")
        if event == "read":
            assert steps - reads >= trainer._IN_FLIGHT or steps == STEPS, "read before the next are on their way"
            assert trained[number + 1 : number + 4] == ["wait"] * 3
    assert trained.count("wait") == 3 * STEPS, "three arrays a read, and nothing else"


def test_the_random_key_is_there_without_the_device() -> None:
    """It is set from a seed before and after each step, and so is no result of one."""
    one = session("mlx")
    before = np.array(mx.random.state[0])
    one.train_step(batch(), None, KNOBS)
    np.testing.assert_array_equal(np.array(mx.random.state[0]), before)
