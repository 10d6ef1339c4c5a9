"""Blocks that are computed again for their gradients give the same numbers in every family, and take less memory."""

from __future__ import annotations

import re
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from backends.contract import Batch, MemorySpec, OptimSpec, SessionConfig, StepHyperparams, is_buffer
from backends.mlx import session as mlx_session
from backends.torch import session as torch_session
from config.errors import ConfigError
from models.registry import ModelSpec
from tests import tiny
from tests.parity import harness, test_eva, test_maxvit, test_regnet
from tests.parity.shrink import shrunk

FAMILIES: dict[str, Callable[[], ModelSpec]] = {
    "convnextv2": lambda: tiny.spec("convnextv2", drop_path_rate=0.5),
    "efficientnet": lambda: tiny.spec("efficientnet", drop_path_rate=0.5),
    "vit": lambda: tiny.spec("vit", drop_path_rate=0.5),
    "swin": lambda: tiny.spec("swin", drop_path_rate=0.5),
    "eva, learned angles": lambda: shrunk(test_eva.ARCHS["rope learned"], 40, test_eva.TINY, drop_path_rate=0.5),
    "regnet": lambda: test_regnet.spec("regnety_002"),
    "maxvit, dropout": lambda: shrunk("maxvit_rmlp_small_rw_224", 64, test_maxvit.TINY, drop_path_rate=0.5),
}
PLAIN = OptimSpec("sgd", momentum=0.0, nesterov=False)
RAW = StepHyperparams(1.0, 0.0, 0.0, 0.0)


def batch(spec: ModelSpec, count: int = 4) -> Batch:
    return Batch(harness.images(spec, count), harness.soft_targets(spec, count), np.ones(count, np.float32))


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputing_keeps_losses_gradients_and_statistics(family: str) -> None:
    """Plain SGD at rate 1 moves each weight by its gradient."""
    spec = FAMILIES[family]()
    weights = harness.weights(spec)
    found = []
    for memory in (MemorySpec(), MemorySpec(recompute=True)):
        session = mlx_session.open(spec, weights, SessionConfig(optim=PLAIN, compile=False, memory=memory))
        result = session.read(session.train_step(batch(spec), None, RAW))
        found.append((result, session.state().weights))
    (plain, want), (again, got) = found
    np.testing.assert_allclose(again.losses, plain.losses, rtol=1e-6)
    assert again.grad_norm == pytest.approx(plain.grad_norm, rel=1e-5)
    for name, value in want.items():
        if is_buffer(name):
            np.testing.assert_allclose(got[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
    names = [n for n in want if not is_buffer(n)]
    moved, other = (np.concatenate([(w[n] - weights[n]).ravel() for n in names]) for w in (want, got))
    assert np.linalg.norm(other - moved) <= 1e-5 * np.linalg.norm(moved)


def test_recomputing_takes_less_memory_in_mlx() -> None:
    """Of twelve blocks about one is there at a time. The limit makes MLX wait, so that its peak is what it needs."""
    args = {"patch_size": 8, "embed_dim": 48, "depth": 12, "num_heads": 3}
    spec = shrunk("vit_tiny_patch16_224", 64, args)
    peaks = []
    before = mx.set_memory_limit(1 << 20)
    try:
        for memory in (MemorySpec(), MemorySpec(recompute=True)):
            session = mlx_session.open(spec, None, SessionConfig(optim=PLAIN, compile=False, memory=memory))
            mx.synchronize()
            mx.clear_cache()
            mx.reset_peak_memory()
            held = mx.get_active_memory()
            session.read(session.train_step(batch(spec, 16), None, RAW))
            peaks.append(mx.get_peak_memory() - held)
            session.close()
    finally:
        mx.set_memory_limit(before)
    assert peaks[1] < peaks[0] / 3


def test_the_compiled_update_in_parts_is_traced_once_for_all_and_once_for_the_head() -> None:
    """Micro-batches, blocks computed again, dropped paths and a frozen start, all together as the eager one does."""
    spec = tiny.spec("convnext", drop_path_rate=0.3)
    weights = harness.weights(spec)
    head = frozenset({"head.fc.weight", "head.fc.bias"})
    memory = MemorySpec(micro_batch=4, recompute=True)
    runs = []
    for compiled in (False, True):
        session = mlx_session.open(
            spec, weights, SessionConfig(optim=OptimSpec(head=head), compile=compiled, memory=memory)
        )
        losses = [
            session.read(
                session.train_step(batch(spec, 8), None, StepHyperparams(1e-3 * (i + 1), 0.05, 0.0, 1.0, i < 2))
            ).losses
            for i in range(5)
        ]
        runs.append((np.array(losses), session.traces))
    (eager, _), (compiled_losses, traces) = runs
    assert traces == 2
    np.testing.assert_allclose(compiled_losses, eager, rtol=1e-5)


def test_a_model_without_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny.spec("convnext")
    monkeypatch.setattr("backends.mlx.recompute._BLOCK", re.compile("nothing"))
    with pytest.raises(ConfigError, match=r"checkpoint_gradients.*no blocks"):
        mlx_session.open(spec, None, SessionConfig(optim=PLAIN, compile=False, memory=MemorySpec(recompute=True)))


def test_torch_keeps_statistics_and_masks_with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(torch_session.DEVICE_VARIABLE, "cpu")
    spec = tiny.spec("efficientnet", drop_path_rate=0.5)
    weights = harness.weights(spec)
    found = []
    for memory in (MemorySpec(), MemorySpec(recompute=True)):
        session = torch_session.open(
            spec, weights, SessionConfig(optim=PLAIN, precision="bf16", compile=False, memory=memory)
        )
        result = session.read(session.train_step(batch(spec), None, RAW))
        found.append((result, session.state().weights))
    (plain, want), (again, got) = found
    np.testing.assert_array_equal(again.losses, plain.losses)
    for name in filter(is_buffer, want):
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
