"""A model with its optimizer on this machine's MLX device: the engine's side of `backends.contract.Session`.

What is computed stands in `step`; here arrays cross the border, calls are counted, and results are waited for.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from backends.contract import (
    DEFAULTS,
    Batch,
    MemorySpec,
    MixPlan,
    OptimSpec,
    SessionConfig,
    StepHyperparams,
    StepResult,
    TrainState,
    Weights,
    Which,
    chunks,
)
from backends.group import ALONE, Group, train_purpose
from backends.mlx import losses, metal, model, profile, recompute, statistics, step, tune
from backends.mlx.distributed.group import join as join
from backends.mlx.distributed.replicas import Replicas
from backends.mlx.memory import memory_errors
from backends.mlx.metal import hardware as hardware
from config.errors import ConfigError
from models.registry import ModelSpec
from models.weights.loading import fitting
from ports.common import layers

Evaluate = Callable[[model.Arrays, mx.array], mx.array]  # (arrays, uint8 images) to float32 rows
# (state, batch, mix, knobs) to (state, report)
Update = Callable[[step.State, model.Arrays, model.Arrays, mx.array], tuple[step.State, step.Report]]


@memory_errors()
def open(spec: ModelSpec, weights: Weights | None, config: SessionConfig = DEFAULTS, group: Group = ALONE) -> Session:
    """Build `spec` on Metal where there is one, else on the CPU; `weights` None draws fresh ones from the seed.

    `config.compile` False runs the same functions eagerly. Raises `ConfigError` or `WeightsError` before anything runs.
    """
    # Metal's bf16 is no faster than its fp32 on most chips: memory is the reason to ask for it.
    config = replace(config, precision="fp32") if config.precision == "auto" else config
    metal.set_arithmetic(config.precision)
    metal.claim_memory()
    tune.choose()
    return Session(spec, weights, config, group)


class Session:
    """See `backends.contract.Session`. Used from the thread that opened it."""

    def __init__(self, spec: ModelSpec, weights: Weights | None, config: SessionConfig, group: Group):
        self.group = group
        self._replicas = Replicas(group)
        self.traces = 0
        self._config, self._classes, self._compiled = config, spec.num_classes, bool(config.compile)
        self._network, arrays = model.build(spec, weights, config.precision, config.seed)
        if config.memory.recompute:
            recompute.wrap(self._network, spec.name)
        self._state = step.initial_state(config.optim, arrays)
        self._calls = 0
        self._loss = losses.make(config.loss)
        self._updates: dict[bool, Update] = {}
        self._evaluate = self._compile(step.evaluate(self._network))
        self._classifier = spec.classifier if isinstance(spec.classifier, str) else spec.classifier[0]
        self._features: Evaluate | None = None

    @memory_errors()
    def train_step(self, batch: Batch, mix: MixPlan | None, knobs: StepHyperparams) -> step.Report:
        """Enqueue one update and return a pending result; never waits for the device."""
        plan = {name: mx.array(value) for name, value in (mix or _identity(len(batch.weights)))._asdict().items()}
        arrays = {name: mx.array(value) for name, value in batch._asdict().items()}
        if self._replicas.count > 1:
            # The images that this process's are mixed with are those of all processes.
            arrays["partners"] = (
                self._replicas.gather(arrays["images"])[self._replicas.mine(plan["permutation"])]
                if mix
                else arrays["images"]
            )
        if knobs.frozen not in self._updates:
            self._updates[knobs.frozen] = self._update(knobs.frozen)
        with self._replicas.waiting():
            with model.seeded(self._config.seed, train_purpose(self.group), self._calls):
                self._state, pending = self._updates[knobs.frozen](self._state, arrays, plan, mx.array(knobs.array()))
            mx.async_eval(self._state, pending)
        self._calls += 1
        return pending

    @memory_errors()
    def read(self, pending: step.Report) -> StepResult:
        """Wait for one pending result."""
        self._replicas.wait(pending)
        each, total, finite = pending
        return StepResult(np.array(each), float(np.array(total)), bool(np.array(finite)))

    @memory_errors()
    def logits(self, images: NDArray[np.uint8], which: Which = "live") -> NDArray[np.float32]:
        """float32 `[N, C]` of uint8 `[N, H, W, 3]`, in evaluation mode; a compiled session pads to whole chunks."""
        arrays = self._arrays(which)
        return self._in_chunks(self._evaluate, arrays, images, self._classes)

    @memory_errors()
    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 `[N, D]` of uint8 `[N, H, W, 3]`: the live weights' pooled features; see `step.features`."""
        if self._features is None:
            self._features = self._compile(step.features(self._network, self._classifier))
        width = self._arrays("live")[f"{self._classifier}.weight"].shape[1]
        return self._in_chunks(self._features, self._arrays("live"), images, width)

    def begin_logits(self, images: NDArray[np.uint8], which: Which = "live") -> Callable[[], NDArray[np.float32]]:
        """As `logits`; nothing goes on beside the caller."""
        logits = self.logits(images, which)
        return lambda: logits

    @memory_errors()
    def recalibrate(self, batches: Iterable[NDArray[np.uint8]]) -> None:
        """Take BatchNorm's running statistics of the live weights anew, as torch's `swa_utils.update_bn` does."""
        means = {} if self._config.optim.fixed_statistics else self._state["buffers"]
        of_batch = self._fast(statistics.of_batch(self._network))
        for count, images in enumerate(batches if means else (), start=1):
            means = statistics.mean(means, of_batch(self._arrays("live"), mx.array(images)), count)
            with self._replicas.waiting():
                mx.eval(means)
        if means:
            means = self._replicas.average(means)
            self._replicas.wait(means)
        self._state = {**self._state, "buffers": means or self._state["buffers"]}

    def state(self) -> TrainState:
        """A copy of the whole state in canonical form; waits for the device. Of a group rank 0 alone has the arrays."""
        self._replicas.wait(self._state)
        moments = {slot: self._canonical(arrays) for slot, arrays in self._state["moments"].items()}
        return TrainState(
            weights=self._canonical(self._arrays("live")),
            ema=self._canonical(self._state["ema"]) if self._config.optim.ema else None,
            optimizer={f"{slot}.{name}": value for slot, arrays in moments.items() for name, value in arrays.items()},
            step=int(self._state["step"].item()),
            calls=self._calls,
            frozen_steps=int(self._state["frozen_steps"].item()),
        )

    def load(self, state: TrainState, strict: bool = True) -> None:
        """Take over a whole state; `WeightsError`, with nothing changed, when names or shapes do not fit.

        With `strict=False` what the state lacks stays as it is here (an absent EMA begins at the weights), what the
        model lacks is left out; a wrong shape is an error in both.
        """
        live = self._fitted("weights", state.weights, self._arrays("live"), strict)
        held = {f"{slot}.{n}": v for slot, arrays in self._state["moments"].items() for n, v in arrays.items()}
        moments = self._fitted("optimizer", state.optimizer, held, strict)
        average = state.ema if state.ema is not None or strict else state.weights
        ema = self._fitted("ema", average or {}, self._state["ema"], strict)
        self._state = {
            "parameters": {name: live[name] for name in self._state["parameters"]},
            "buffers": {name: live[name] for name in self._state["buffers"]},
            "ema": ema,
            "moments": {s: {n: moments[f"{s}.{n}"] for n in names} for s, names in self._state["moments"].items()},
            "step": mx.array(state.step, mx.int32),
            "frozen_steps": mx.array(state.frozen_steps, mx.int32),
        }
        self._calls = state.calls

    def profile(self, folder: Path) -> AbstractContextManager[None]:
        """Trace the inside of the context with Metal's capture."""
        return profile.traced(folder)

    def describe(self) -> dict[str, Any]:
        """Device, precision, memory in bytes, library versions, and how often the update was traced.

        On Metal also `memory_limit`, the bytes that it recommends to use at most."""
        info = mx.device_info()
        return {
            "engine": "mlx",
            "device": f"{mx.default_device().type.name}: {info.get('device_name', platform.processor())}",
            "precision": self._config.precision,
            "processes": self.group.world_size,
            "compiled": self._compiled,
            "traces": self.traces,
            "gradients": {**tune.choose().ways, "from": tune.choose().source},
            "memory": {
                "active": mx.get_active_memory(),
                "peak": mx.get_peak_memory(),
                "cache": mx.get_cache_memory(),
            },
            **({"memory_limit": limit} if (limit := metal.memory_limit()) else {}),
            "versions": {"mlx": importlib.metadata.version("mlx"), "python": platform.python_version()},
        }

    def close(self) -> None:
        """Free the arrays and MLX's cache; the session cannot be used afterwards."""
        self._state = step.initial_state(OptimSpec(), {})
        mx.clear_cache()

    def _update(self, frozen: bool) -> Update:
        """The compiled update; all of the batch at once, or in parts."""
        trained = self._config.optim.trained(self._state["parameters"], frozen)
        context = step.StepContext(
            self._network, self._config.optim, self._loss, trained, frozen, self._count_trace, self._replicas
        )
        if not self._config.memory.micro_batch and self._replicas.count == 1:
            return self._fast(step.train_step(context))
        parts = step.train_step_in_parts(context)
        fast = {name: self._fast(function) for name, function in parts._asdict().items() if name != "reduce"}
        return _in_parts(parts._replace(**fast), self._config.memory)

    def _canonical(self, arrays: model.Arrays) -> Weights:
        return model.to_canonical(self._network, arrays) if self.group.rank == 0 else {}

    def _fast(self, function: Any) -> Any:
        return mx.compile(function, inputs=mx.random.state, outputs=mx.random.state) if self._compiled else function

    def _arrays(self, which: Which) -> model.Arrays:
        if which == "live":
            both = {**self._state["parameters"], **self._state["buffers"]}
            return {name: both[name] for name in self._network.homes if name in both}
        if not self._config.optim.ema:
            raise ConfigError(
                "this session keeps no EMA weights; open it with OptimSpec(ema=True) or ask for live ones"
            )
        return dict(self._state["ema"])

    def _compile(self, function: Evaluate) -> Evaluate:
        return mx.compile(function) if self._compiled else function

    def _in_chunks(
        self, function: Evaluate, arrays: model.Arrays, images: NDArray[np.uint8], width: int
    ) -> NDArray[np.float32]:
        """float32 `[N, width]`; a compiled function gets chunks of one shape."""
        rows = []
        for chunk, count in chunks(images, self._compiled):
            results = function(arrays, mx.array(chunk))
            self._replicas.wait(results)
            rows.append(np.array(results)[:count])
        return np.concatenate(rows) if rows else np.zeros((0, width), np.float32)

    def _fitted(self, section: str, weights: Weights, held: model.Arrays, strict: bool) -> model.Arrays:
        """The arrays of `held` taken from `weights`; keys end in parameter names."""
        homes = {key: self._network.homes[key.partition(".")[2] if section == "optimizer" else key] for key in held}
        shapes = {key: layers.timm_shape(*homes[key], value) for key, value in held.items()}
        weights = fitting(section, weights, shapes, strict)
        return {
            key: mx.array(layers.mlx_layout(*homes[key], weights[key])) if key in weights else value
            for key, value in held.items()
        }

    def _count_trace(self) -> None:
        self.traces += 1


def _in_parts(parts: step.Parts, memory: MemorySpec) -> Update:
    """The update as a loop over micro-batches, each enqueued before the next is begun."""

    def update(
        state: step.State, batch: model.Arrays, mix: model.Arrays, knobs: mx.array
    ) -> tuple[step.State, step.Report]:
        count = len(batch["images"])
        size = memory.size(count)
        inputs, sums, each = parts.prepare(batch, mix), parts.none(state), []
        for start in range(0, count, size):
            chunk = {name: value[start : start + size] for name, value in inputs.items()}
            sums, losses_of_chunk = parts.add(state["parameters"], sums, chunk)
            mx.async_eval(sums, losses_of_chunk)
            each.append(losses_of_chunk)
        sums, losses_of_batch = parts.reduce(sums, mx.concatenate(each))
        state, total, finite = parts.apply(state, sums, knobs)
        return state, (losses_of_batch, total, finite)

    return update


def _identity(count: int) -> MixPlan:
    """The plan that mixes nothing."""
    ones, box = np.ones(count, np.float32), np.zeros((count, 4), np.int32)
    return MixPlan(np.arange(count, dtype=np.int32), ones, box, ones)
