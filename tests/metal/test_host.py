"""Sessions on a Mac, as far as the host goes: MLX answers as a Mac's does, on the GPU and with `--device cpu`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import backends
from backends.contract import SessionConfig
from backends.mlx import metal, tune
from config.errors import ConfigError, OutOfMemory
from ports.common import gradients
from tests import tiny
from tests.contract.cases import batch, session, step
from training.loop import memory

GIB = 2**30
RECOMMENDED = 48 * GIB
# What `mx.device_info` says on a Mac (mlx/backend/metal/device_info.cpp, mlx/backend/cpu/device_info.cpp).
GPU = {
    "device_name": "Apple M4 Pro",
    "architecture": "applegpu_g16s",
    "max_buffer_length": 36 * GIB,
    "max_recommended_working_set_size": RECOMMENDED,
    "memory_size": 64 * GIB,
    "resource_limit": 499000,
}
CPU = {"device_name": "Apple M4 Pro", "architecture": "arm64"}


class Mac:
    """What a Mac was told: limits in bytes by name, and the budgets of `tune`."""

    def __init__(self) -> None:
        self.limits: dict[str, int] = {}
        self.measured: list[float] = []
        self.device = mx.Device(mx.gpu)


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Mac]:
    mac = Mac()
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path))
    for name in (metal.TF32, *metal.WINOGRAD):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(metal, "_told", [])
    monkeypatch.setattr(gradients, "CHOSEN", dict(gradients.DEFAULTS))
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mac.device)

    def info(device: Any = None) -> dict[str, Any]:
        return GPU if (device or mac.device).type == mx.gpu else CPU

    def measure(budget: float, keys: Any = ()) -> tune.Seconds:
        mac.measured.append(budget)
        return {key: {gradients.LIBRARY: 2.0, gradients.OURS: 1.0} for key in keys}

    monkeypatch.setattr(mx, "device_info", info)
    monkeypatch.setattr(mx, "set_wired_limit", lambda size: mac.limits.update(wired=size))
    monkeypatch.setattr(mx, "set_cache_limit", lambda size: mac.limits.update(cache=size))
    monkeypatch.setattr(tune, "measure", measure)
    tune.choice_of.cache_clear()
    yield mac
    tune.choice_of.cache_clear()
    for name in (metal.TF32, *metal.WINOGRAD):
        os.environ.pop(name, None)


def test_a_session_on_the_gpu_sets_its_limits_measures_and_trains(mac: Mac) -> None:
    one = session("mlx")
    assert mac.limits == {"wired": RECOMMENDED, "cache": RECOMMENDED * 3 // 4}
    assert len(mac.measured) == 1
    assert set(gradients.CHOSEN.values()) == {gradients.OURS}
    assert step(one, batch()).finite
    said = one.describe()
    assert said["memory_limit"] == RECOMMENDED
    assert said["device"] == "gpu: Apple M4 Pro"
    session("mlx")
    assert len(mac.measured) == 1, "kept"


def test_a_session_on_the_cpu_asks_for_nothing_of_the_gpu(mac: Mac) -> None:
    mac.device = mx.Device(mx.cpu)
    one = session("mlx")
    assert not mac.limits
    assert not mac.measured
    assert "memory_limit" not in one.describe()
    assert np.isfinite(one.logits(np.zeros((1, 32, 32, 3), np.uint8))).all()


def test_each_device_has_its_choice_in_one_process(mac: Mac) -> None:
    session("mlx")
    mac.device = mx.Device(mx.cpu)
    assert session("mlx").describe()["gradients"]["from"] == "known of CPUs"
    assert gradients.CHOSEN == gradients.DEFAULTS
    mac.device = mx.Device(mx.gpu)
    session("mlx")
    assert set(gradients.CHOSEN.values()) == {gradients.OURS}
    assert len(mac.measured) == 1


@pytest.mark.parametrize(
    ("precision", "tf32", "winograd"),
    [("auto", "0", None), ("fp32", "0", None), ("bf16", "0", "0"), ("tf32", "1", None)],
)
def test_arithmetic_is_set_before_anything_is_computed(
    precision: str, tf32: str, winograd: str | None, mac: Mac, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str | None, ...]] = []
    uniform = mx.random.uniform
    monkeypatch.setattr(mx.random, "uniform", lambda *a, **k: (seen.append(_switches()), uniform(*a, **k))[1])
    session("mlx", precision=precision)
    assert seen[0] == (tf32, winograd, winograd and "1")


def _switches() -> tuple[str | None, ...]:
    return tuple(os.environ.get(name) for name in (metal.TF32, *metal.WINOGRAD))


def test_what_the_user_set_stays(mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (metal.TF32, *metal.WINOGRAD):
        monkeypatch.setenv(name, "1")
    session("mlx", precision="bf16")
    session("mlx", precision="fp32")
    assert _switches() == ("1", "1", "1")


def test_fp32_after_tf32_in_one_process_is_an_error(mac: Mac) -> None:
    session("mlx", precision="tf32")
    with pytest.raises(ConfigError, match="computes in tf32 already"):
        session("mlx", precision="fp32")


def test_tf32_without_metal_is_an_error() -> None:
    with pytest.raises(ConfigError, match="tf32: MLX has it on Metal alone"):
        session("mlx", precision="tf32")


def test_a_rehearsal_that_took_more_than_metal_recommends_did_not_fit(
    mac: Mac, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = session("mlx")
    step(one, batch())
    memory.check_limit(one.describe())
    monkeypatch.setattr(mx, "get_peak_memory", lambda: 50 * GIB)
    with pytest.raises(OutOfMemory, match=r"50\.0 GiB were taken, 48\.0"):
        memory.check_limit(one.describe())
    memory.check_limit(session("numpy").describe())


def test_the_peak_is_the_sessions_own() -> None:
    held = mx.ones((2048, 2048))
    mx.eval(held)
    del held
    opened = backends.load("mlx").open(tiny.spec("convnext"), None, SessionConfig(compile=False))
    assert opened.describe()["memory"]["peak"] < 2048 * 2048 * 4
