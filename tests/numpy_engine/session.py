"""Softmax regression as a session: everything of the contract, deterministic, with no framework.

The architecture of the spec is ignored but for its classes, image size, mean and std.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from backends.contract import (
    DEFAULTS,
    Batch,
    Hardware,
    MixPlan,
    SessionConfig,
    StepHyperparams,
    StepResult,
    TrainState,
    Weights,
    Which,
)
from backends.group import ALONE, Group
from config.errors import ConfigError
from config.launch import Launch
from models.registry import ModelSpec
from models.weights.loading import check
from tests.numpy_engine import model, optim


def hardware() -> Hardware:
    """The CPU and the machine's memory."""
    return Hardware("cpu", psutil.virtual_memory().total)


def open(spec: ModelSpec, weights: Weights | None, config: SessionConfig = DEFAULTS, group: Group = ALONE) -> Session:
    """A linear session for `spec`; it computes in fp32 whatever the precision, compiles nothing, and has no
    activations that a micro-batch would save."""
    if config.memory.recompute:
        raise ConfigError("train.checkpoint_gradients: the numpy engine has no blocks to compute again; leave it off")
    return Session(spec, weights, config, group)


def join(launch: Launch) -> Group:
    """`ALONE`; `ConfigError` where there are others."""
    if launch.several:
        raise ConfigError("the numpy engine trains in one process alone; start it without torchrun")
    return ALONE


class Session:
    """See `backends.contract.Session`."""

    def __init__(self, spec: ModelSpec, weights: Weights | None, config: SessionConfig, group: Group):
        self.group = group
        loss, optimizer = config.loss, config.optim
        if loss.name != "cross_entropy" or loss.options:
            raise ConfigError(f"loss {loss.name!r}: the numpy engine has only cross_entropy, without options")
        self._class_weights = np.asarray(loss.class_weights or (1.0,), np.float32)
        self._shapes = model.shapes(spec)
        if optimizer.name not in optim.MOMENTS:
            raise ConfigError(
                f"optimizer {optimizer.name!r} is not known to the numpy engine; choose {', '.join(optim.MOMENTS)}"
            )
        unknown = sorted(optimizer.named - self._shapes.keys())
        if unknown:
            raise ConfigError(f"the optimizer's settings name {unknown[0]!r}, which is no parameter of this model")
        if weights is not None:
            check(weights, self._shapes)
        own = _copied(weights) if weights is not None else model.fresh(spec, config.seed)
        self._spec, self._optimizer, self._memory = spec, optimizer, config.memory
        ema = _copied(own) if optimizer.ema else None
        self._state = TrainState(weights=own, ema=ema, optimizer=optim.fresh(own, optimizer))

    def train_step(self, batch: Batch, mix: MixPlan | None, knobs: StepHyperparams) -> StepResult:
        """Apply one update at once; the pending result is the result."""
        self._memory.size(len(batch.images))
        trained = self._optimizer.trained(self._shapes, knobs.frozen)
        state = self._state
        state.calls += 1
        pixels, targets = model.normalise(batch.images, self._spec), batch.targets
        if mix is not None:
            pixels, targets = model.mixed(pixels, targets, mix)
        with np.errstate(all="ignore"):
            losses, gradients = model.losses_and_gradients(
                state.weights, model.features(pixels), targets * self._class_weights, batch.weights
            )
            gradients = {name: g for name, g in gradients.items() if name in trained}
            norm = optim.norm(gradients)
        finite = math.isfinite(norm) and bool(np.isfinite((losses * batch.weights).sum()))
        if finite:
            self._apply(gradients, knobs)
        return StepResult(losses.astype(np.float32), norm, finite)

    def read(self, pending: StepResult) -> StepResult:
        """The result of an update."""
        return pending

    def logits(self, images: NDArray[np.uint8], which: Which = "live") -> NDArray[np.float32]:
        """float32 `[N, C]` of uint8 `[N, H, W, 3]`."""
        weights = self._state.weights if which == "live" else self._state.ema
        if weights is None:
            raise ConfigError(
                "this session keeps no EMA weights; open it with OptimSpec(ema=True) or ask for live ones"
            )
        return model.logits(weights, model.features(model.normalise(images, self._spec)))

    def begin_logits(self, images: NDArray[np.uint8], which: Which = "live") -> Callable[[], NDArray[np.float32]]:
        """As `logits`; nothing goes on beside the caller."""
        found = self.logits(images, which)
        return lambda: found

    def recalibrate(self, batches: Iterable[NDArray[np.uint8]]) -> None:
        """Nothing: there is no BatchNorm."""

    def state(self) -> TrainState:
        """A copy of the whole state."""
        kept = self._state
        ema = None if kept.ema is None else _copied(kept.ema)
        return replace(kept, weights=_copied(kept.weights), ema=ema, optimizer=_copied(kept.optimizer))

    def load(self, state: TrainState, strict: bool = True) -> None:
        """Take over a whole state; with `strict=False` names may be absent (kept as here) or unknown (left out)."""
        held = self._state
        absent = {} if strict else state.weights
        ema = absent if state.ema is None else state.ema
        weights = _fitted("weights", state.weights, held.weights, strict)
        average = _fitted("ema", ema, held.ema or {}, strict)
        moments = _fitted("optimizer", state.optimizer, held.optimizer, strict)
        kept = average if self._optimizer.ema else None
        self._state = replace(state, weights=weights, ema=kept, optimizer=moments)

    def profile(self, folder: Path) -> AbstractContextManager[None]:
        """`ConfigError`: this engine has no traces."""
        raise ConfigError(f"profile: the numpy engine has no traces to write into {folder}; leave --profile out")

    def describe(self) -> dict[str, Any]:
        """Device, precision, memory in bytes, library versions."""
        size = sum(a.nbytes for a in (*self._state.weights.values(), *self._state.optimizer.values()))
        return {
            "engine": "numpy",
            "device": f"cpu: {platform.processor() or platform.machine()}",
            "precision": "fp32",
            "compiled": False,
            "memory": {"active": size},
            "versions": {"numpy": np.__version__, "python": platform.python_version()},
        }

    def close(self) -> None:
        """Nothing is held outside this object."""

    def _apply(self, gradients: Weights, knobs: StepHyperparams) -> None:
        state, spec = self._state, self._optimizer
        state.frozen_steps += int(knobs.frozen)
        gradients = optim.limited(state.weights, gradients, spec, knobs.clip_norm)
        state.step += 1
        counts = {name: state.step - (0 if name in spec.head else state.frozen_steps) for name in gradients}
        moved, state.optimizer = optim.update(state.weights, gradients, state.optimizer, spec, knobs, counts)
        state.weights = {**state.weights, **moved}
        if state.ema is not None:
            share = np.float32(1 - knobs.ema_decay)
            state.ema = {n: e + share * (state.weights[n] - e) for n, e in state.ema.items()}


def _fitted(part: str, given: Weights, held: Weights, strict: bool) -> Weights:
    if not strict:
        given = {name: given.get(name, own) for name, own in held.items()}
    check(given, {name: own.shape for name, own in held.items()}, f"{part} of the state")
    return _copied(given)


def _copied(weights: Weights) -> Weights:
    return {name: np.array(value, dtype=np.float32) for name, value in weights.items()}
