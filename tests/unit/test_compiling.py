"""When the step is compiled: as the settings insist, or where a trial on the device says that it pays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from backends.contract import LossSpec, MemorySpec, OptimSpec
from backends.torch import compiling as torch_compiling
from backends.torch.session import Session
from config import load
from config.errors import ConfigError
from config.train_sections import Train
from tests import tiny
from tests.contract.cases import CLASSES, KNOBS, SIZE, N, assert_same, batch
from training import compiling, prepare
from training.compiling import Ahead
from training.policy import compiling as policy

AHEAD = Ahead(updates=50, batch=N, size=SIZE, classes=CLASSES)
CPU = torch.device("cpu")


class Opened:
    """Opens sessions of the torch engine on the CPU that pretend to be on a device that compiles."""

    def __init__(self) -> None:
        self.wishes: list[Any] = []

    def __call__(self, wish: Any) -> Any:
        self.wishes.append(wish)
        session = torch_session()
        kept = session.describe()
        session.describe = lambda: {**kept, "compiles": True, "compiled": bool(wish)}  # type: ignore[method-assign]
        return session


def torch_session(compile: Any = False) -> Session:
    spec = tiny.spec("resnet", num_classes=CLASSES)
    return Session(spec, None, OptimSpec(ema=True), LossSpec(), "fp32", 0, compile, MemorySpec(), CPU)


@pytest.mark.parametrize("updates", [50, 10**9])
def test_auto_compiles_a_long_training_and_says_why_not_a_short_one(updates: int) -> None:
    opened, said = Opened(), []
    train = Train(compile="auto", compile_mode="reduce-overhead")
    compiling.session(opened, "torch", train, replace(AHEAD, updates=updates), said.append)
    long = updates == 10**9
    assert opened.wishes == ([False, "reduce-overhead"] if long else [False])
    assert bool(said) != long
    assert long or "not compiled: 50 updates" in said[0]


def test_the_trial_changes_nothing() -> None:
    session = torch_session()
    session.read(session.train_step(batch(), None, KNOBS))
    before = session.state()
    seconds, tensors = compiling.trial(session, AHEAD)
    assert seconds > 0
    assert tensors == len(before.weights)
    assert_same(before, session.state())


def test_settings_are_obeyed_without_a_trial() -> None:
    for wish, expected in (("off", False), ("on", "max-autotune")):
        opened = Opened()
        compiling.session(opened, "torch", Train(compile=wish, compile_mode="max-autotune"), AHEAD)
        assert opened.wishes == [expected]
    opened = Opened()
    compiling.session(opened, "mlx", Train(), AHEAD)
    assert opened.wishes == [True]
    with pytest.raises(ConfigError, match=r"train\.compile on"):
        compiling.session(lambda _: torch_session(), "numpy", Train(compile="on"), AHEAD)


def test_modes_are_torchs_alone() -> None:
    wish = load.parse(["--data.root", "x", "--train.compile_mode", "reduce-overhead"], prog="test")
    prepare.refuse(wish, "torch")
    with pytest.raises(ConfigError, match="torch alone has modes"):
        prepare.refuse(wish, "mlx")


def test_compiling_pays_from_the_length_on_where_it_saves_more_than_it_costs() -> None:
    lengths = [n for n in range(0, 5000, 10) if policy.pays(n, 0.1, tensors=300)]
    assert lengths[0] * 0.1 * 0.25 == pytest.approx(policy.cost(300), rel=0.05)
    assert lengths == list(range(lengths[0], 5000, 10))


def test_each_mode_where_it_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts, gpu = MemorySpec(), MemorySpec(micro_batch=4), torch.device("cuda")
    monkeypatch.setattr(torch_compiling, "has_triton", lambda: True)
    assert torch_compiling.mode(True, gpu, whole) == "default"
    assert torch_compiling.mode("reduce-overhead", gpu, whole) == "reduce-overhead"
    # Gradients that are added up cannot live in the memory of CUDA graphs.
    assert torch_compiling.mode("reduce-overhead", gpu, parts) == "default"
    assert torch_compiling.mode("max-autotune", gpu, parts) == "max-autotune-no-cudagraphs"
    assert torch_compiling.mode(True, CPU, whole) == torch_compiling.mode(False, gpu, whole) == ""
    monkeypatch.setattr(torch_compiling, "has_triton", lambda: False)
    assert torch_compiling.mode(True, gpu, whole) == ""
    with pytest.raises(ConfigError, match="Triton"):
        torch_compiling.mode("default", gpu, whole)
    monkeypatch.setattr(torch_compiling.shutil, "which", lambda _: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"C\+\+ compiler"):
        torch_compiling.mode("default", CPU, whole)


def test_a_compiled_session_trains_as_an_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through torch.compile's own machinery, with its eager back end: the compiler is not what is tested."""
    compile, modes = torch.compile, []

    def with_eager(network: torch.nn.Module, dynamic: bool, mode: str | None = None) -> Any:
        modes.append(mode)
        return compile(network, dynamic=dynamic, backend="eager")

    monkeypatch.setattr(torch, "compile", with_eager)
    one, other = torch_session(), torch_session("max-autotune")
    assert other.describe()["compiled"]
    for session in (one, other):
        for seed in range(2):
            session.read(session.train_step(batch(seed), None, KNOBS))
    np.testing.assert_allclose(other.logits(batch().images[:3]), one.logits(batch().images[:3]), atol=1e-5)
    for name, value in one.state().weights.items():
        np.testing.assert_allclose(other.state().weights[name], value, atol=1e-5, err_msg=name)
    assert modes == ["max-autotune-no-cudagraphs", None, None]
