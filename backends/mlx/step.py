"""The two functions that are compiled: one training update, and the evaluation of a batch. Nothing is decided here.

Both are pure: state in, state out. Everything that changes from step to step is an array of fixed shape, so that each
is traced once. An update that is not finite is computed and then not taken, on the device, without a wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from backends.contract import OptimSpec, is_buffer
from backends.mlx import losses, optim
from backends.mlx.model import Arrays, Network, forward, normalise

# {"parameters", "buffers", "ema": Arrays, "moments": Moments, "step": int32 []}
State = dict[str, Any]
# losses float32 [N], gradient norm float32 [], finite bool []
Report = tuple[mx.array, mx.array, mx.array]


def fresh(spec: OptimSpec, arrays: Arrays) -> State:
    """The state of a run that has not begun, around the network's arrays."""
    parameters = {name: value for name, value in arrays.items() if not is_buffer(name)}
    return {
        "parameters": parameters,
        "buffers": {name: value for name, value in arrays.items() if is_buffer(name)},
        "ema": dict(arrays) if spec.ema else {},
        "moments": optim.fresh(spec, parameters),
        "step": mx.array(0, mx.int32),
    }


def train(
    network: Network, spec: OptimSpec, loss: losses.Loss, names: list[str], traced: Callable[[], None]
) -> Callable[[State, Arrays, Arrays, mx.array], tuple[State, Report]]:
    """The update as a function of (state, batch, mix, knobs); `traced` is called whenever Python runs it."""
    multipliers = optim.multipliers(spec, names)

    def step(state: State, batch: Arrays, mix: Arrays, knobs: mx.array) -> tuple[State, Report]:
        traced()
        images, targets = mixed(normalise(network, batch["images"]), batch["targets"], mix)

        def objective(parameters: Arrays) -> tuple[mx.array, mx.array, Arrays]:
            logits, buffers = forward(network, {**parameters, **state["buffers"]}, images, training=True)
            each = loss(logits, targets)
            return losses.weighted_mean(each, batch["weights"]), each, buffers

        (mean, each, buffers), gradients = mx.value_and_grad(objective)(state["parameters"])
        total = optim.norm(gradients)
        finite = mx.isfinite(mean) & mx.isfinite(total)
        new = _updated(spec, state, gradients, buffers, total, multipliers, knobs)
        return _chosen(finite, new, state), (each, total, finite)

    return step


def evaluate(network: Network) -> Callable[[Arrays, mx.array], mx.array]:
    """float32 logits `[N, C]` as a function of (arrays, uint8 images)."""

    def logits(arrays: Arrays, images: mx.array) -> mx.array:
        return forward(network, arrays, normalise(network, images), training=False)[0]

    return logits


def mixed(images: mx.array, targets: mx.array, mix: Arrays) -> tuple[mx.array, mx.array]:
    """Mixup and CutMix of `contract.MixPlan`, on the device: float images `[N, H, W, C]`, targets `[N, classes]`."""
    other = images[mix["permutation"]]
    blend, own = mix["blend"][:, None, None, None], mix["own"][:, None]
    top, bottom, left, right = (mix["box"][:, i, None] for i in range(4))
    rows, columns = mx.arange(images.shape[1])[None], mx.arange(images.shape[2])[None]
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
    images = mx.where(inside[..., None], other, blend * images + (1 - blend) * other)
    return images, own * targets + (1 - own) * targets[mix["permutation"]]


def _updated(
    spec: OptimSpec,
    state: State,
    gradients: Arrays,
    buffers: Arrays,
    total: mx.array,
    multipliers: mx.array,
    knobs: mx.array,
) -> State:
    lr, weight_decay, ema_decay, clip_norm = (knobs[i] for i in range(4))
    count = state["step"] + 1
    gradients = optim.clipped(gradients, total, clip_norm)
    rates = optim.Rates(lr * multipliers[0], weight_decay * multipliers[1])
    parameters, moments = optim.update(spec, state["parameters"], gradients, state["moments"], rates, count)
    ema = optim.averaged(state["ema"], {**parameters, **buffers}, ema_decay)
    return {"parameters": parameters, "buffers": buffers, "ema": ema, "moments": moments, "step": count}


def _chosen(finite: mx.array, new: Any, old: Any) -> Any:
    """`new` where `finite`, else `old`, for every array of two trees of one shape."""
    if isinstance(old, dict):
        return {key: _chosen(finite, new[key], value) for key, value in old.items()}
    return mx.where(finite, new, old)
