"""The one interface between the training loop and an engine.

Everything that crosses it is NumPy in canonical form: images uint8 `[N, H, W, 3]` RGB; weights float32 under
timm's names in timm's layout (convolutions OIHW); logits float32 `[N, C]`. Nothing here imports a framework.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from backends.group import ALONE, Group
from config.errors import ConfigError
from config.launch import Launch
from config.sections.train import Precision as Precision
from models.registry import ModelSpec

Weights = dict[str, NDArray[np.float32]]
# How torch compiles: "reduce-overhead" replays CUDA graphs, "max-autotune" also tries out kernels.
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
FIRST_LOSS_SCALE = 2.0**16  # torch.amp.GradScaler's
Which = Literal["live", "ema"]

_BUFFERS = ("running_mean", "running_var")


def is_buffer(name: str) -> bool:
    """Whether a canonical name is a running statistic, which no optimizer updates."""
    return name.rpartition(".")[2] in _BUFFERS


class Batch(NamedTuple):
    """One training batch of fixed shape; a short last batch is padded with weight 0.

    images: uint8 `[N, H, W, 3]`; targets: float32 `[N, C]`, rows that sum to one, already smoothed;
    weights: float32 `[N]`, the share of each sample in the mean loss.
    """

    images: NDArray[np.uint8]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]


# Pixels of one evaluation chunk: 64 images at 224, 16 at 448. More gains nothing and takes memory.
_CHUNK_PIXELS = 64 * 224 * 224
_CHUNK_MOST = 64


def chunks(images: NDArray[np.uint8], fixed_shape: bool) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """uint8 `[N, H, W, 3]` in the chunks that an evaluation passes at a time, each with its number of images; with
    `fixed_shape` the last one is filled up with black images."""
    size = max(1, min(_CHUNK_MOST, _CHUNK_PIXELS // math.prod(images.shape[1:3])))
    for start in range(0, len(images), size):
        chunk = images[start : start + size]
        count = len(chunk)
        if fixed_shape and count < size:
            chunk = np.concatenate([chunk, np.zeros((size - count, *chunk.shape[1:]), np.uint8)])
        yield chunk, count


class MixPlan(NamedTuple):
    """Mixup and CutMix of one batch, decided on the host and applied on the device.

    With `p = permutation`, sample i becomes `blend[i] * x[i] + (1 - blend[i]) * x[p[i]]`; then the rectangle
    `box[i] = (top, bottom, left, right)` (half open, pixels; all zero for none) is taken from `x[p[i]]`; its target is
    `own[i] * t[i] + (1 - own[i]) * t[p[i]]`.
    """

    permutation: NDArray[np.int32]
    blend: NDArray[np.float32]
    box: NDArray[np.int32]
    own: NDArray[np.float32]


class StepHyperparams(NamedTuple):
    """What the schedules decide for one step. `array()` is what reaches the device, so that nothing retraces.

    With `frozen`, only the parameters of `OptimSpec.head` are trained: the others, their moments and their running
    statistics stay, and their normalisation uses those statistics. An engine has one trace for each of its two values.
    """

    lr: float
    weight_decay: float
    ema_decay: float
    clip_norm: float
    frozen: bool = False

    def array(self) -> NDArray[np.float32]:
        """float32 `[4]`, the first four fields; a `clip_norm` of 0 or less means no clipping."""
        return np.asarray(self[:4], dtype=np.float32)


@dataclass(frozen=True)
class LossSpec:
    """A loss by its name in both engines, with all of its options. Label smoothing is already in the targets.

    `class_weights` has a factor for each class, or is empty. In `backends.losses.LINEAR` it multiplies the target, as
    in torch's `cross_entropy(weight=)` with probabilities for targets. In the others, where absent classes cost as
    well, it multiplies the sample's loss by `sum_c weight_c * target_c`, as Cui et al. 2019 do: weights on their
    columns would not change which probabilities are best. The per-sample losses include it; the mean over the batch
    divides by the sum of `Batch.weights` alone.
    """

    name: str = "cross_entropy"
    options: Mapping[str, float] = field(default_factory=dict)
    class_weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class OptimSpec:
    """An optimizer by its name in both engines: torch.optim's AdamW and SGD, Lion (Chen et al. 2023) and Muon (Jordan
    2024) as timm's.

    `multipliers` maps a canonical parameter name to (learning-rate multiplier, weight-decay multiplier); a name that
    is absent has (1, 1). `matrices` are the parameters that Muon orthogonalises, each flattened to (outputs, rest); it
    hands the others to AdamW. `head` names the classifier's parameters (see `StepHyperparams.frozen`).
    Gradients are limited in this order, 0 being no limit: each unit's norm to `clip_factor` of its weight's norm, the
    head spared (Brock et al. 2021); each entry to +-`clip_value`; all together to `StepHyperparams.clip_norm`.
    `ema` says whether an exponential moving average of all weights is kept. With `fixed_statistics` BatchNorm uses its
    running statistics in training too and nothing moves them, `recalibrate` neither.
    """

    name: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    nesterov: bool = True
    ema: bool = False
    fixed_statistics: bool = False
    multipliers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    matrices: frozenset[str] = frozenset()
    head: frozenset[str] = frozenset()
    clip_value: float = 0.0
    clip_factor: float = 0.0

    @property
    def named(self) -> frozenset[str]:
        """Every parameter that the spec speaks of."""
        return self.matrices | self.head | self.multipliers.keys()

    def trained(self, names: Iterable[str], frozen: bool) -> frozenset[str]:
        """Those of the parameters `names` that an update moves; `ConfigError` when all but nothing is frozen."""
        if frozen and not self.head:
            raise ConfigError("optim.freeze_epochs freezes all but the classifier, and the model has none; leave it 0")
        return self.head if frozen else frozenset(names)


@dataclass(frozen=True)
class MemorySpec:
    """How an update is made to need less memory.

    `micro_batch` images pass the network at a time (0: all) and their gradients are added up, which gives the whole
    batch's gradients, except that BatchNorm takes the statistics of each part; it must divide the batch.
    `recompute` keeps the input of each block only and computes the block again for its gradient (Chen et al. 2016).
    """

    micro_batch: int = 0
    recompute: bool = False

    def size(self, batch: int) -> int:
        """The images of a batch that pass at a time; `ConfigError` when they do not divide it."""
        if self.micro_batch and batch % self.micro_batch:
            raise ConfigError(
                f"train.micro_batch {self.micro_batch} does not divide the batch of {batch}; choose a divisor of it"
            )
        return self.micro_batch or batch


@dataclass(frozen=True)
class SessionConfig:
    """How a session trains and computes.

    `precision` "auto" is bf16 where the device is fast at it (CUDA), else fp32. `seed` keys dropout, stochastic depth
    and fresh weights. `compile` True compiles where the engine gains by it; a mode, which only torch's engine takes,
    compiles or raises `ConfigError`. Torch's engine alone takes `deterministic`, CUDA gives the same numbers each time,
    `sync_batch_norm`, BatchNorm takes the statistics of all processes' images, and `fsdp`, the processes of a group
    share out parameters, moments and averages; `logits` then want as many images on each of them.
    """

    optim: OptimSpec = field(default_factory=OptimSpec)
    loss: LossSpec = field(default_factory=LossSpec)
    precision: Precision = "fp32"
    seed: int = 0
    compile: bool | CompileMode = True
    memory: MemorySpec = field(default_factory=MemorySpec)
    deterministic: bool = False
    sync_batch_norm: bool = False
    fsdp: bool = False


DEFAULTS = SessionConfig()


@dataclass
class TrainState:
    """Everything a run needs to go on, on either engine.

    `optimizer` holds `exp_avg.NAME` and `exp_avg_sq.NAME` (AdamW), `exp_avg.NAME` (Lion) or `momentum_buffer.NAME`
    (SGD, Muon's matrices) in the layout of the weights; `step` counts the applied updates, `frozen_steps` those of them
    in which only the head was trained, `calls` all calls of `train_step` (it keys the device's random numbers).
    `loss_scale` is the factor of an fp16 loss, `scale_age` the updates since it changed.
    """

    weights: Weights
    ema: Weights | None = None
    optimizer: Weights = field(default_factory=dict)
    step: int = 0
    calls: int = 0
    frozen_steps: int = 0
    loss_scale: float = FIRST_LOSS_SCALE
    scale_age: int = 0


class StepResult(NamedTuple):
    """What one update reports: unweighted per-sample losses float32 `[N]`, the gradient norm before clipping,
    and whether all was finite (an update that was not is skipped by the engine; one of fp16 that only wants a smaller
    loss scale is skipped too, but is no fault and counts as finite). `seconds` is how long the device worked on it, 0
    where the engine cannot tell."""

    losses: NDArray[np.float32]
    grad_norm: float
    finite: bool
    seconds: float = 0.0


class Session(Protocol):
    """A model with its optimizer on a device, in one of the processes of a group.

    In a group of several every process calls the same methods in the same order, but for `logits`, `begin_logits`,
    `describe` and `profile`. All of them have the same weights, moments and running statistics, to the bit.
    """

    group: Group

    def train_step(self, batch: Batch, mix: MixPlan | None, knobs: StepHyperparams) -> Any:
        """Enqueue one update and return a pending result; never waits for the device.

        Of a batch of N rows each process has the images of its own, rank r of W those from r * N / W on; targets,
        weights and `mix` are the whole batch's. `MemorySpec.micro_batch` counts a process's own images.
        """

    def read(self, pending: Any) -> StepResult:
        """Wait for one pending result: the only wait in training. It is the whole batch's, the same on each process."""

    def logits(self, images: NDArray[np.uint8], which: Which = "live") -> NDArray[np.float32]:
        """float32 `[N, C]` of uint8 `[N, H, W, 3]`, in evaluation mode."""

    def begin_logits(self, images: NDArray[np.uint8], which: Which = "live") -> Callable[[], NDArray[np.float32]]:
        """Enqueue `logits` and return a function that waits for them and gives them."""

    def recalibrate(self, batches: Iterable[NDArray[np.uint8]]) -> None:
        """Take BatchNorm's running statistics anew, as the mean over `batches` (uint8 `[N, H, W, 3]`, one shape) of
        each batch's own, with dropout off; nothing is taken from `batches` where the model has no BatchNorm.

        In a group each process has batches of its own, as many as the others, and the mean is over all of them.
        """

    def state(self) -> TrainState:
        """A copy of the whole state in canonical form. In a group rank 0 has it; on the others the arrays may be left
        out."""

    def load(self, state: TrainState, strict: bool = True) -> None:
        """Take over a whole state; `WeightsError` (and nothing changed) when names or shapes do not fit."""

    def profile(self, folder: Path) -> AbstractContextManager[None]:
        """A context whose inside is traced; at its end the trace is written into `folder`, and for people `table.txt`
        where the engine has one. Raises `BackendUnavailable` or `ConfigError`, at the call, where it has no traces."""

    def describe(self) -> dict[str, Any]:
        """Device, precision, memory in bytes, library versions."""

    def close(self) -> None:
        """Free the device's memory."""


class Hardware(NamedTuple):
    """Where an engine computes: "cpu", "cuda", "mps" or "metal", and the bytes of memory that it has there."""

    kind: str
    memory: int


class Backend(Protocol):
    """A module that opens sessions."""

    def hardware(self) -> Hardware:
        """This machine's best device."""

    def join(self, launch: Launch) -> Group:
        """The group of the processes that a launcher started, this one among them; `ALONE` where it started no others.

        Raises `ConfigError` or `BackendUnavailable`, in one line, where the engine cannot train in several processes
        here, and `GroupLost` where the others do not come.
        """

    def open(
        self, spec: ModelSpec, weights: Weights | None, config: SessionConfig = DEFAULTS, group: Group = ALONE
    ) -> Session:
        """Build `spec` on this machine's best device and load `weights` (`None`: fresh, drawn from the seed)."""
