"""When the step is compiled: as the settings insist, or where a trial on the device says that it pays."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch._dynamo.eval_frame import _debug_get_cache_entry_list

from backends.contract import MemorySpec, OptimSpec, SessionConfig
from backends.group import ALONE
from backends.torch import compiling as torch_compiling
from backends.torch import model as networks
from backends.torch.session import Session
from config import load
from config.errors import BackendUnavailable, ConfigError
from config.sections.train import Train
from tests import tiny
from tests.contract.cases import CLASSES, KNOBS, SIZE, N, assert_same, batch
from training.loop import compiling
from training.loop.compiling import Ahead
from training.policy import compiling as policy
from training.run import prepare

CPU = torch.device("cpu")


@pytest.fixture
def ahead(tmp_path: Path) -> Ahead:
    return Ahead(updates=50, batch=N, size=SIZE, classes=CLASSES, folder=tmp_path)


class Opened:
    """Opens sessions of the torch engine on the CPU that pretend to be on a device that compiles, or lacks `absent`."""

    def __init__(self, absent: str = "") -> None:
        self.wishes: list[Any] = []
        self.absent = absent

    def __call__(self, wish: Any) -> Any:
        self.wishes.append(wish)
        if wish and self.absent:
            raise BackendUnavailable(f"there is no {self.absent}")
        session = torch_session()
        kept = session.describe()
        session.describe = lambda: {**kept, "compiles": True, "compiled": bool(wish)}  # type: ignore[method-assign]
        return session


class Small(torch.nn.Module):
    """A network whose tracing takes no second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.fc = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.stem(x)).mean((2, 3)))


def torch_session(compile: Any = False, size: int = SIZE, micro: int = 0) -> Session:
    spec = tiny.spec("resnet", num_classes=CLASSES, image_size=size)
    optimizer = OptimSpec(ema=True, head=frozenset({"fc.weight", "fc.bias"}))
    config = SessionConfig(optimizer, compile=compile, memory=MemorySpec(micro_batch=micro))
    return Session(spec, None, config, CPU, ALONE)


@pytest.mark.parametrize("updates", [50, 10**9])
def test_auto_compiles_a_long_training_and_says_why_not_a_short_one(updates: int, ahead: Ahead) -> None:
    opened, said = Opened(), []
    train = Train(compile="auto", compile_mode="reduce-overhead")
    compiling.session(opened, "torch", train, replace(ahead, updates=updates), said.append)
    long = updates == 10**9
    assert opened.wishes == ([False, "reduce-overhead"] if long else [False])
    assert bool(said) != long
    assert long or "not compiled: 50 updates" in said[0]


def test_a_resumed_fold_keeps_the_choice_of_its_first_start(ahead: Ahead) -> None:
    """What is left of a long training is short at last, and of another machine's a short one long: no new trial."""
    for first, later in ((10**9, 1), (1, 10**9)):
        folder = ahead.folder / str(first)
        folder.mkdir()
        wishes = []
        for updates in (first, later):
            opened = Opened()
            compiling.session(
                opened, "torch", Train(), replace(ahead, updates=updates, folder=folder), lambda _text: None
            )
            wishes.append(opened.wishes[-1])
        assert wishes[0] == wishes[1] == ("default" if first > 1 else False)


def test_auto_goes_on_without_a_compiler_and_says_so(ahead: Ahead) -> None:
    opened, said = Opened("compiler"), []
    compiling.session(opened, "torch", Train(), replace(ahead, updates=10**9), said.append)
    assert opened.wishes == [False, "default", False]
    assert said == ["continues without compiling: there is no compiler"]
    with pytest.raises(BackendUnavailable, match="no compiler"):
        compiling.session(Opened("compiler"), "torch", Train(compile="on"), ahead)


def test_the_trial_changes_nothing(ahead: Ahead) -> None:
    session = torch_session()
    session.read(session.train_step(batch(), None, KNOBS))
    before = session.state()
    seconds, tensors = compiling.trial(session, ahead)
    assert seconds > 0
    assert tensors == len(before.weights)
    assert_same(before, session.state())


def test_settings_are_obeyed_without_a_trial(ahead: Ahead) -> None:
    for wish, expected in (("off", False), ("on", "max-autotune")):
        opened = Opened()
        compiling.session(opened, "torch", Train(compile=wish, compile_mode="max-autotune"), ahead)
        assert opened.wishes == [expected]
    opened = Opened()
    compiling.session(opened, "mlx", Train(), ahead)
    assert opened.wishes == [True]
    with pytest.raises(ConfigError, match=r"train\.compile on"):
        compiling.session(lambda _: torch_session(), "numpy", Train(compile="on"), ahead)


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
    monkeypatch.setattr(torch_compiling, "_tried", lambda _device: "")
    assert torch_compiling.mode(True, gpu, whole) == "default"
    assert torch_compiling.mode("reduce-overhead", gpu, whole) == "reduce-overhead"
    # Gradients that are added up cannot live in the memory of CUDA graphs.
    assert torch_compiling.mode("reduce-overhead", gpu, parts) == "default"
    assert torch_compiling.mode("max-autotune", gpu, parts) == "max-autotune-no-cudagraphs"
    assert torch_compiling.mode(True, CPU, whole) == torch_compiling.mode(False, gpu, whole) == ""
    with pytest.raises(ConfigError, match="does not compile on mps"):
        torch_compiling.mode("default", torch.device("mps"), whole)


def test_what_the_compiler_lacks_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, whole = torch.device("cuda"), MemorySpec()
    monkeypatch.setattr(torch_compiling, "has_triton", lambda: False)
    torch_compiling._tried.cache_clear()
    assert torch_compiling.mode(True, gpu, whole) == ""
    with pytest.raises(BackendUnavailable, match="Triton"):
        torch_compiling.mode("default", gpu, whole)
    monkeypatch.setattr(torch_compiling.sysconfig, "get_path", lambda _: "/nowhere")
    with pytest.raises(BackendUnavailable, match=r"Python\.h"):
        torch_compiling.mode("default", CPU, whole)
    monkeypatch.setattr(torch_compiling.shutil, "which", lambda _: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BackendUnavailable, match=r"C\+\+ compiler"):
        torch_compiling.mode("default", CPU, whole)
    torch_compiling._tried.cache_clear()


def test_a_kernel_that_cannot_be_built_is_one_line_that_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's own words where there is no C compiler, after the lines that Inductor puts before them."""
    words = "backend='inductor' raised:\nRuntimeError: Failed to find C compiler. Please specify via CC environment."

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError(words)

    monkeypatch.setattr(torch_compiling, "has_triton", lambda: True)
    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: None)
    torch_compiling._tried.cache_clear()
    with pytest.raises(BackendUnavailable, match=r"Failed to find C compiler.*python3-dev.*or set it to off"):
        torch_compiling.mode("default", torch.device("cuda:0"), MemorySpec())
    assert torch_compiling.mode(True, torch.device("cuda:0"), MemorySpec()) == ""
    torch_compiling._tried.cache_clear()


def versions(session: Session) -> int:
    """How many compiled versions of the network's forward pass there are."""
    return len(_debug_get_cache_entry_list(type(session._context.model).forward.__code__))


def updates(session: Session, *sizes: int) -> None:
    """An update with a frozen backbone and one without at each size, and an evaluation of both weights at the last."""
    for size in sizes:
        data = batch()._replace(images=np.zeros((N, size, size, 3), np.uint8))
        for frozen in (True, False):
            session.read(session.train_step(data, None, KNOBS._replace(frozen=frozen)))
    for which in ("live", "ema"):
        session.logits(np.zeros((N, sizes[-1], sizes[-1], 3), np.uint8), which)  # type: ignore[arg-type]


def test_every_size_micro_batch_and_member_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo keeps 8 versions by default and runs the others eagerly; a passing run proves that none was refused."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, **_: compile(network, dynamic=False, backend="eager"))
    monkeypatch.setattr(networks, "build", lambda _spec: Small())
    torch.compiler.reset()
    session = torch_session("default")
    updates(session, 24, 32, 40, 48)
    assert versions(session) == 4 * 2 + 2, "each size with and without a frozen backbone, and two evaluations"
    session.close()
    session = torch_session("default")
    updates(session, 24, 32, 40, 48)
    assert versions(session) == 10, "the next fold takes what the last one compiled"
    session.close()
    for micro in (4, 2):
        session = torch_session("default", micro=micro)
        updates(session, 24, 32, 40, 48)
    assert versions(session) == 10 + 2 * 8, "a halved micro-batch compiles the training anew"
    session.close()
    session = torch_session("default", size=24)
    updates(session, 24)
    assert versions(session) == 4, "another member begins with none"
    assert torch._dynamo.config.fail_on_recompile_limit_hit
    session.close()


def test_a_compiled_session_leaves_no_tensor_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Dynamo keeps of it for the next fold must not keep its memory."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, **_: compile(network, dynamic=False, backend="eager"))
    monkeypatch.setattr(networks, "build", lambda _spec: Small())
    session = torch_session("default")
    updates(session, 24, 32)
    average = session._context.average
    assert average is not None and versions(session) >= 6
    held = [weakref.ref(t) for t in (*session._tensors.values(), *average.tensors.values(), *session._moments.values())]
    del average
    session.close()
    del session
    gc.collect()
    assert len(held) > 20 and not [reference for reference in held if reference() is not None]


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
