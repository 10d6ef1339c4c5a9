"""Tiny sessions and batches that the contract's tests share."""

from __future__ import annotations

from typing import Any

import numpy as np

import backends
from backends.contract import Batch, LossSpec, MixPlan, OptimSpec, SessionConfig, StepHyperparams, TrainState
from tests import tiny

N, CLASSES, SIZE = 8, 5, 32
KNOBS = StepHyperparams(lr=1e-3, weight_decay=0.05, ema_decay=0.9, clip_norm=1.0)
PLAIN_SGD = OptimSpec(name="sgd", momentum=0.0, nesterov=False)
OPTIMIZERS = {"adamw": OptimSpec(ema=True), "sgd": OptimSpec(name="sgd", momentum=0.9, ema=True)}


def session(engine: str, optim: OptimSpec | None = None, seed: int = 0, **options: Any) -> Any:
    kept = {k: options.pop(k) for k in ("weights", "precision", "loss", "memory") if k in options}
    weights, loss = kept.pop("weights", None), kept.pop("loss", LossSpec())
    spec = tiny.spec(options.pop("family", "convnext"), **{"num_classes": CLASSES, **options})
    module = backends.load(engine)
    return module.open(
        spec, weights, SessionConfig(optim=optim or OptimSpec(), loss=loss, seed=seed, compile=False, **kept)
    )


def batch(seed: int = 0, even: bool = False) -> Batch:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 128, (N, SIZE, SIZE, 3)).astype(np.uint8) * (2 if even else 1)
    targets = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, N)]
    return Batch(images, 0.9 * targets + np.float32(0.1 / CLASSES), np.ones(N, np.float32))


def identity() -> MixPlan:
    ones = np.ones(N, np.float32)
    return MixPlan(np.arange(N, dtype=np.int32), ones, np.zeros((N, 4), np.int32), ones)


def step(one: Any, data: Batch, mix: MixPlan | None = None, knobs: StepHyperparams = KNOBS) -> Any:
    return one.read(one.train_step(data, mix, knobs))


def assert_same(a: TrainState, b: TrainState) -> None:
    assert (a.step, a.calls) == (b.step, b.calls)
    for x, y in ((a.weights, b.weights), (a.ema or {}, b.ema or {}), (a.optimizer, b.optimizer)):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)
