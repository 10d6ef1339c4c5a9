"""The large networks of `make bench-gpu` without a GPU: whole updates on the meta device, where a wait for the device
is an error, their operations counted; the activations that an update keeps, by FakeTensor."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad
from torch.utils._python_dispatch import TorchDispatchMode

from backends.contract import Batch, MemorySpec, MixPlan, OptimSpec, SessionConfig
from backends.group import ALONE
from backends.torch import model as networks
from backends.torch import step
from backends.torch.session import Session
from benchmarks.gpu_arms import LARGE
from models import registry
from tests.contract.cases import CLASSES, KNOBS

META = torch.device("meta")
N = 4
NETWORKS = (
    *((name, size, batch) for name, (size, batch, _) in LARGE.items()),
    ("swin_base_patch4_window7_224", 224, 128),
)


class Counted(TorchDispatchMode):
    """Counts the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def drawn(size: int) -> tuple[Batch, MixPlan]:
    targets = np.full((N, CLASSES), 1 / CLASSES, np.float32)
    images = np.zeros((N, size, size, 3), np.uint8)
    half = np.full(N, 0.5, np.float32)
    plan = MixPlan(np.arange(N, dtype=np.int32)[::-1].copy(), half, np.full((N, 4), 8, np.int32), half)
    return Batch(images, targets, np.ones(N, np.float32)), plan


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, size, _ in NETWORKS])
def test_an_update_waits_for_nothing_and_adds_few_operations(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With EMA, Mixup, CutMix, a micro-batch and the scaled loss of fp16, whose autocast alone meta lacks."""
    monkeypatch.setattr(step, "autocast", lambda *_: nullcontext())
    for name_of_it in ("_has_foreach_support", "_device_has_foreach_support"):  # clip as on CUDA
        monkeypatch.setattr(clip_grad, name_of_it, lambda *_, **__: True)
    build = networks.build

    def on_meta(spec: Any) -> torch.nn.Module:
        with META:
            return build(spec)

    monkeypatch.setattr(networks, "build", on_meta)
    spec, optimizer = registry.get(name, num_classes=CLASSES, image_size=size), OptimSpec(ema=True, clip_value=0.1)
    data, plan = drawn(size)
    config = SessionConfig(optimizer, compile=False)
    whole = Session(spec, None, config, META, ALONE)
    config = SessionConfig(optimizer, precision="fp16", compile=False, memory=MemorySpec(micro_batch=2))
    parts = Session(spec, None, config, META, ALONE)
    for session in (whole, parts):
        session.train_step(data, plan, KNOBS)  # a wait would raise here
        session.begin_logits(data.images, "ema")
    network = whole._context.model.train()
    with Counted() as own:
        network(torch.empty(N, 3, size, size, device=META)).sum().backward()
    network.zero_grad()
    with Counted() as all_of_it:
        whole.train_step(data, plan, KNOBS)
    # What is done to all tensors is one operation each, but for views; running statistics have some of their own.
    extra, statistics = all_of_it.count - own.count, len(whole._tensors) - len(whole._parameters)
    assert 0 < extra < 200 + 4 * statistics, (extra, statistics, len(whole._tensors))


def activations(name: str, size: int, precision: str, recompute: bool = False) -> int:
    """Bytes that a forward pass of `N` images keeps for the gradients, weights apart."""
    with META:
        network = networks.build(registry.get(name, num_classes=CLASSES, image_size=size))
    if recompute:
        step.checkpoint_blocks(network, name)
    kept: dict[int, int] = {}
    with FakeTensorMode(), torch.device("cpu"):
        tensors = {
            n: torch.empty(t.shape, dtype=t.dtype, requires_grad=t.requires_grad)
            for n, t in (*network.named_parameters(), *network.named_buffers())
        }
        own = {t.untyped_storage()._cdata for t in tensors.values()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        pixels = torch.empty(N, 3, size, size)
        arithmetic = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), arithmetic:
            torch.func.functional_call(network, tensors, (pixels,))
    return sum(kept.values())


@pytest.mark.parametrize(("name", "size", "batch"), NETWORKS)
def test_the_benchmarks_cases_fit(name: str, size: int, batch: int) -> None:
    """A batch's activations in bf16 leave room on a card of 80 GB; recomputing needs less than half of them."""
    exact, half = (activations(name, size, precision) for precision in ("fp32", "bf16"))
    assert half < exact
    assert half * batch / N < 40 * 2**30
    assert activations(name, size, "bf16", recompute=True) < half / 2
