"""A model with its optimizer on a torch device: the engine's side of `backends.contract.Session`.

What is computed stands in `step`; here arrays cross the border, calls are counted, and results are waited for.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import timm
import torch
import torch.utils.deterministic
from numpy.typing import NDArray
from torch import nn
from torch.profiler import record_function

from backends.contract import (
    DEFAULTS,
    FIRST_LOSS_SCALE,
    Batch,
    MixPlan,
    SessionConfig,
    StepHyperparams,
    StepResult,
    TrainState,
    Weights,
    Which,
    chunks,
)
from backends.group import ALONE, Group, train_purpose
from backends.torch import compiling, losses, model, optim, profile, statistics, step
from backends.torch.devices import DEVICE_VARIABLE as DEVICE_VARIABLE
from backends.torch.devices import best_device as best_device
from backends.torch.devices import hardware as hardware
from backends.torch.devices import remark
from backends.torch.distributed.group import join as join
from backends.torch.distributed.group import lost
from backends.torch.distributed.replicas import Replicas, synchronised
from backends.torch.memory import memory_errors
from backends.torch.precision import LossScale, resolved, tf32
from backends.torch.transfer import Pending, Transfer, arrived
from config.errors import ConfigError
from models.registry import ModelSpec
from models.weights.loading import fitting


@memory_errors()
def open(spec: ModelSpec, weights: Weights | None, config: SessionConfig = DEFAULTS, group: Group = ALONE) -> Session:
    """Build `spec` on CUDA, else Apple's MPS, else the CPU; `weights` None draws fresh ones from the seed.

    `config.compile` True compiles the passes on CUDA only, a mode on the CPU too. Raises `ConfigError`, `WeightsError`
    or `BackendUnavailable`.
    """
    if config.deterministic:  # read when cuBLAS starts, so before the device is touched
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return Session(spec, weights, config, best_device(), group)


class Session:
    """See `backends.contract.Session`."""

    def __init__(
        self, spec: ModelSpec, weights: Weights | None, config: SessionConfig, device: torch.device, group: Group
    ):
        self.group = group
        if spec.in_chans not in (1, 3):
            raise ConfigError(f"model {spec.name}: in_chans is {spec.in_chans}; images are RGB, so choose 1 or 3")
        precision, optimizer, memory = resolved(config.precision, device), config.optim, config.memory
        self._config, self._precision, self._device = config, precision, device
        if device.type == "cuda":
            # Shapes are fixed, so that the fastest algorithm is worth looking for; which one it is varies.
            torch.backends.cudnn.benchmark = not config.deterministic
            torch.cuda.reset_peak_memory_stats(device)
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # torch's aid to find faults; it costs time
        self._classes, self._calls = spec.num_classes, 0
        self._mode = "" if config.fsdp else compiling.mode(config.compile, device, memory)
        if self._mode:
            compiling.renew(spec)
        self._transfer = Transfer(device)
        self._set: bool | None = None  # the mode of training that the network is in: frozen or not; None: evaluation
        network = self._network(spec, weights)
        if memory.recompute:
            step.checkpoint_blocks(network, spec.name)
        if config.sync_batch_norm and group.world_size > 1:
            network = synchronised(network, device)
        average = optim.Average(network) if optimizer.ema else None
        replicas = self._replicas(network, average)
        self._parameters = dict(replicas.parameters)
        self._tensors = model.canonical_tensors(network)
        self._context = step.StepContext(
            model=network,
            replicas=replicas,
            loss=losses.make(config.loss),
            spec=optimizer,
            memory=memory,
            parameters=self._parameters,
            optimizers=optim.make(self._parameters, optimizer, step.dtype_of(precision)),
            statistics=optim.Statistics(network),
            average=average,
            count=torch.zeros((), dtype=torch.int64, device=device),
            frozen_count=torch.zeros((), dtype=torch.int64, device=device),
            scale=LossScale(device) if precision == "fp16" else None,
        )
        self._moments = optim.moments(self._context.optimizers, self._parameters)
        self._evaluate = compiling.evaluation(network, self._mode)
        self._evaluate_average = compiling.evaluation(average.model, self._mode) if average else None
        prep = spec.preprocessing
        mean, std = (torch.tensor(v, dtype=torch.float32, device=device) for v in (prep.mean, prep.std))
        self._input = step.Input(mean, std, spec.in_chans, precision, self._layout())

    @lost()
    @memory_errors()
    def train_step(self, batch: Batch, mix: MixPlan | None, knobs: StepHyperparams) -> Pending:
        """Enqueue one update and return a pending result; never waits for CUDA."""
        rates = step.Rates(*(float(v) for v in knobs.array()))
        sent = self._transfer.send([*batch, *(mix or ())])
        if self._set is not knobs.frozen:
            step.set_mode(self._context, knobs.frozen)
            self._set = knobs.frozen
        began = self._transfer.begin()
        with (
            record_function("train_step"),
            step.randomness(self._config.seed, train_purpose(self.group), self._calls, self._device),
        ):
            packed = step.train_step(self._context, self._input, sent[:3], sent[3:] or None, rates, knobs.frozen)
        self._calls += 1
        return self._transfer.returning(packed, began)

    @lost()
    @memory_errors()
    def read(self, pending: Pending) -> StepResult:
        """Wait for one pending result, and not for updates that were enqueued after it."""
        with record_function("read"):
            packed, seconds = arrived(pending)
        return StepResult(packed[:-2].copy(), float(packed[-2]), bool(packed[-1]), seconds)

    @memory_errors()
    def logits(self, images: NDArray[np.uint8], which: Which = "live") -> NDArray[np.float32]:
        """float32 `[N, C]` of uint8 `[N, H, W, 3]`, in evaluation mode; a compiled session pads to whole chunks."""
        return self.begin_logits(images, which)()

    @memory_errors()
    def begin_logits(self, images: NDArray[np.uint8], which: Which = "live") -> Callable[[], NDArray[np.float32]]:
        """Enqueue `logits` without waiting for CUDA, and return a function that waits for them and gives them."""
        network, forward = self._weights_of(which)
        self._set = None
        network.eval()
        rows = [
            step.evaluate(forward, self._input, self._transfer.send([chunk])[0])[:count]
            for chunk, count in chunks(images, fixed_shape=bool(self._mode))
        ]
        if not rows:
            return lambda: np.zeros((0, self._classes), np.float32)
        pending = self._transfer.returning(torch.cat(rows), None)
        return memory_errors()(lambda: arrived(pending)[0])

    @lost()
    @memory_errors()
    def recalibrate(self, batches: Iterable[NDArray[np.uint8]]) -> None:
        """Take BatchNorm's running statistics of the live weights anew, as `swa_utils.update_bn` does."""
        if self._config.optim.fixed_statistics:
            return
        self._set = None
        sent = (self._transfer.send([images])[0] for images in batches)
        statistics.recalibrate(self._context.model, self._input, self._precision, sent)
        self._context.replicas.average_(self._context.statistics.tensors)

    @memory_errors()
    def state(self) -> TrainState:
        """A copy of the whole state in canonical form; waits for the device. Of a group rank 0 alone has the arrays."""
        average, scale, arrays = self._context.average, self._context.scale, self._context.replicas.arrays
        return TrainState(
            weights=arrays(self._tensors),
            ema=arrays(average.tensors) if average else None,
            optimizer=arrays(self._moments),
            step=int(self._context.count.item()),
            calls=self._calls,
            frozen_steps=int(self._context.frozen_count.item()),
            loss_scale=float(scale.value.item()) if scale else FIRST_LOSS_SCALE,
            scale_age=int(scale.age.item()) if scale else 0,
        )

    @memory_errors()
    def load(self, state: TrainState, strict: bool = True) -> None:
        """Take over a whole state; `WeightsError`, with nothing changed, when names or shapes do not fit.

        With `strict=False` what the state lacks stays as it is here (an absent EMA begins at the weights), what the
        session lacks is left out; a wrong shape is an error in both.
        """
        average = self._context.average
        held = {"weights": self._tensors, "ema": average.tensors if average else {}, "optimizer": self._moments}
        absent = {} if strict else state.weights
        arrays = {
            "weights": state.weights,
            "ema": absent if state.ema is None else state.ema,
            "optimizer": state.optimizer,
        }
        replicas = self._context.replicas
        for section, tensors in held.items():
            shapes = {name: replicas.shape(name, tensor) for name, tensor in tensors.items()}
            arrays[section] = fitting(section, arrays[section], shapes, strict)
        for section, tensors in held.items():
            replicas.copy_(tensors, arrays[section])
        self._context.count.fill_(state.step)
        self._context.frozen_count.fill_(state.frozen_steps)
        optim.set_step(self._context.optimizers, self._parameters, self._config.optim, state.step, state.frozen_steps)
        if self._context.scale:
            self._context.scale.value.fill_(state.loss_scale)
            self._context.scale.age.fill_(state.scale_age)
        self._calls = state.calls

    def profile(self, folder: Path) -> AbstractContextManager[None]:
        """Trace the inside of the context with torch's profiler."""
        return profile.traced(folder, self._device)

    def describe(self) -> dict[str, Any]:
        """Device, precision, memory in bytes, library versions."""
        on_cuda = self._device.type == "cuda"
        name = torch.cuda.get_device_name(self._device) if on_cuda else platform.processor() or platform.machine()
        return {
            "engine": "torch",
            "device": f"{self._device}: {name}",
            "precision": self._precision,
            "processes": self.group.world_size,
            "compiled": bool(self._mode),
            "compile_mode": self._mode,
            "compiles": on_cuda,
            "deterministic": self._config.deterministic,
            "remark": remark(self._device),
            "tf32": tf32(self._device),
            "layout": str(self._layout()).removeprefix("torch."),
            "memory": self._memory(),
            "versions": {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()},
        }

    def close(self) -> None:
        """Free the device's memory; the session cannot be used afterwards."""
        self._context.replicas.close()
        del self._context, self._tensors, self._parameters, self._moments
        del self._evaluate, self._evaluate_average
        compiling.release(self._mode)
        if self._config.deterministic:
            torch.use_deterministic_algorithms(False)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _network(self, spec: ModelSpec, weights: Weights | None) -> nn.Module:
        with step.randomness(self._config.seed, "weights", 0, torch.device("cpu")):
            network = model.build(spec)
        if weights is not None:
            model.load_canonical(network, weights, f"the weights for {spec.name}")
        return network.to(self._device, memory_format=self._layout())

    def _replicas(self, network: nn.Module, average: optim.Average | None) -> Replicas:
        if not self._config.fsdp or self.group.world_size == 1:
            return Replicas(self.group, network, compiling.training(network, self._mode))
        from backends.torch.distributed.sharded import Sharded  # imports much that few need

        spread = Sharded(self.group, network, average.model if average else None, self._device)
        if average:
            average.follow(network)
        return spread

    def _layout(self) -> torch.memory_format:
        """Tensor cores and oneDNN want channels last; on MPS that slows the gradients of convolutions, and FSDP2 takes
        contiguous kernels alone."""
        plain = self._device.type == "mps" or self._config.fsdp
        return torch.contiguous_format if plain else torch.channels_last

    def _weights_of(self, which: Which) -> tuple[nn.Module, compiling.Forward]:
        if which == "live":
            return self._context.model, self._evaluate
        if self._context.average is None or self._evaluate_average is None:
            raise ConfigError(
                "this session keeps no EMA weights; open it with OptimSpec(ema=True) or ask for live ones"
            )
        return self._context.average.model, self._evaluate_average

    def _memory(self) -> dict[str, int]:
        if self._device.type == "cuda":
            active, peak = torch.cuda.memory_allocated(self._device), torch.cuda.max_memory_allocated(self._device)
            return {"active": active, "peak": peak}
        if self._device.type == "mps":
            return {"active": torch.mps.current_allocated_memory()}
        return {"active": psutil.Process().memory_info().rss}
