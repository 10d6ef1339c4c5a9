"""What the torch engine's step must not do: wait for the device. On the meta device, which holds no values, any look at
one is an error, so that an update which passes there never waits on CUDA either."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from backends.contract import MemorySpec, OptimSpec, Precision, SessionConfig
from backends.group import ALONE
from backends.torch import model as networks
from backends.torch import optim, step
from backends.torch.session import Session
from config.errors import OutOfMemory
from data.loading.loader import Loaded
from tests import tiny
from tests.contract.cases import CLASSES, KNOBS, batch, identity
from training.loop import evaluation, memory

META = torch.device("meta")


def on_meta(family: str, optimizer: OptimSpec, precision: Precision = "fp32", micro: int = 0) -> Session:
    spec = tiny.spec(family, num_classes=CLASSES)
    config = SessionConfig(optimizer, precision=precision, compile=False, memory=MemorySpec(micro_batch=micro))
    return Session(spec, None, config, META, ALONE)


@pytest.mark.parametrize("family", tiny.TINY)
def test_an_update_never_looks_at_a_value_on_the_device(family: str) -> None:
    session = on_meta(family, OptimSpec(ema=True))
    for plan in (None, identity()):
        pending = session.train_step(batch(), plan, KNOBS)
        assert pending.packed.device == META and pending.packed.shape == (len(batch().images) + 2,)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        session.read(pending)  # the test's own proof: this is where a wait would be


@pytest.mark.parametrize(
    "optimizer",
    [
        OptimSpec(clip_value=0.1, clip_factor=0.01),
        OptimSpec(name="lion", ema=True),
        OptimSpec(name="muon", matrices=frozenset({"stem.0.weight"})),
    ],
    ids=lambda o: o.name,
)
def test_no_optimizer_and_no_limit_looks_either(optimizer: OptimSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        step, "autocast", lambda *_: nullcontext()
    )  # meta has none; the loss scale is what is looked at
    session = on_meta("convnext", optimizer, "fp16", micro=4)
    for _ in range(2):
        session.train_step(batch(), None, KNOBS)
    frozen = OptimSpec(head=frozenset({"head.fc.weight", "head.fc.bias"}))
    on_meta("convnext", frozen).train_step(batch(), None, KNOBS._replace(frozen=True))


class Looks(TorchDispatchMode):
    """Counts the operations that take a value from the device to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "unique", "masked_select"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lion", "muon"])
def test_nothing_is_taken_to_the_host_in_an_update_on_the_cpu(optimizer: str) -> None:
    """Torch has no meta kernel of its fused SGD, hence this count."""
    spec, matrices = tiny.spec("resnet", num_classes=CLASSES), frozenset({"layer1.0.conv1.weight"})
    wish = OptimSpec(optimizer, ema=True, matrices=matrices if optimizer == "muon" else frozenset())
    session = Session(spec, None, SessionConfig(wish, precision="bf16", compile=False), torch.device("cpu"), ALONE)
    with Looks() as looks:
        session.train_step(batch(), identity(), KNOBS)
        assert not looks.found
        torch.ones(()).item()
    assert looks.found == ["_local_scalar_dense"]  # the count counts


def test_the_average_moves_by_the_same_in_one_kernel_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA all its tensors move in one kernel; that path on the CPU, against torch's own moving average."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    average = optim.Average(model)
    before = {name: tensor.clone() for name, tensor in average.tensors.items()}
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(torch.ones_like(tensor))
    monkeypatch.setattr(optim, "_IN_BULK", ("cpu",))
    average.update(0.9, torch.tensor(False))
    assert all(torch.equal(tensor, before[name]) for name, tensor in average.tensors.items())
    average.update(0.9, torch.tensor(True))
    reference = torch.optim.swa_utils.get_ema_avg_fn(0.9)
    for name, tensor in average.tensors.items():
        torch.testing.assert_close(tensor, reference(before[name], model.state_dict()[name], 0))


def test_the_state_is_copied_in_few_parts_and_is_the_caller_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 5))
    network = network.to(memory_format=torch.channels_last)
    tensors = networks.canonical_tensors(network)
    monkeypatch.setattr(networks, "_COPY", 4 * 230)  # the convolution alone, then the rest
    joined = []
    cat = torch.cat
    monkeypatch.setattr(torch, "cat", lambda parts: joined.append(len(parts)) or cat(parts))
    arrays = networks.to_arrays(tensors)
    assert joined == [2, 6] and list(arrays) == list(tensors)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, tensors[name].detach().numpy(), err_msg=name)
        assert array.dtype == np.float32 and array.flags.c_contiguous and array.flags.writeable
        array += 1
        assert not np.array_equal(array, tensors[name].detach().numpy()), (
            "a change of the copy is not one of the network"
        )
    assert networks.to_arrays({}) == {}


def test_evaluation_enqueues_the_next_batches_before_it_waits() -> None:
    told: list[str] = []

    class Session_:
        group = ALONE

        def begin_logits(self, images: Any, which: str) -> Any:
            number = int(images[0, 0, 0, 0])
            told.append(f"enqueued {number}")
            return lambda: told.append(f"waited for {number}") or np.full((len(images), 2), number, np.float32)

    class Batches:
        def epoch(self, order: Any, epoch: int) -> Any:
            for number in range(4):
                images = np.full((2, 1, 1, 3), number, np.uint8)
                yield Loaded(images, np.array([2 * number, 2 * number + 1]), np.ones(2, np.float32))

    found = evaluation.evaluate(Session_(), Batches(), 8)  # type: ignore[arg-type]
    assert found[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert told[:4] == ["enqueued 0", "enqueued 1", "enqueued 2", "waited for 0"]


@pytest.mark.parametrize("ends", ["close", "out of memory"])
def test_nothing_of_a_session_outlives_it(ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next member, or the halved micro-batch, needs the memory: its tensors are gone after `close`, and after an
    update that ran out of memory."""
    spec, optimizer = tiny.spec("resnet", num_classes=CLASSES), OptimSpec(ema=True)
    session = Session(spec, None, SessionConfig(optimizer, compile=False), torch.device("cpu"), ALONE)
    session.read(session.train_step(batch(), None, KNOBS))
    average = session._context.average
    assert average is not None
    held = [weakref.ref(t) for t in (*session._tensors.values(), *average.tensors.values(), *session._moments.values())]
    del average
    if ends != "close":
        moved = optim.update

        def full(*_: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        monkeypatch.setattr(optim, "update", full)
        try:
            session.train_step(batch(), None, KNOBS)
        except OutOfMemory as error:
            memory.halved(8, 8, error)
        monkeypatch.setattr(optim, "update", moved)
    session.close()
    del session
    gc.collect()
    assert len(held) > 50
    assert not [reference for reference in held if reference() is not None]


def test_what_is_sent_is_not_changed_and_comes_back() -> None:
    session = Session(tiny.spec("convnext"), None, SessionConfig(compile=False), torch.device("cpu"), ALONE)
    images = batch().images.copy()
    images.flags.writeable = False
    result = session.read(session.train_step(batch()._replace(images=images), None, KNOBS))
    assert result.finite and result.seconds == 0.0
    np.testing.assert_array_equal(images, batch().images)


def test_a_device_that_is_too_full_for_a_copy_of_the_state_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a checkpoint as in an update: the fold goes on in smaller parts."""
    spec = tiny.spec("convnext", num_classes=CLASSES)
    session = Session(spec, None, SessionConfig(compile=False), torch.device("cpu"), ALONE)
    state = session.state()

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB.")

    monkeypatch.setattr(networks, "to_arrays", full)
    monkeypatch.setattr(networks, "copy_into", full)
    for call in (session.state, lambda: session.load(state)):
        with pytest.raises(OutOfMemory, match="micro_batch"):
            call()
