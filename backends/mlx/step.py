"""The functions that are compiled: one training update, whole or in parts, and the evaluation of a batch.

All are pure: state in, state out. Everything that changes from step to step is an array of fixed shape, so that each
is traced once. An update that is not finite is computed and then not taken, on the device, without a wait.
Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from backends.contract import OptimSpec, is_buffer
from backends.mlx import losses, optim
from backends.mlx.distributed.replicas import Replicas
from backends.mlx.model import Arrays, Network, cast, forward, normalise

# {"parameters", "buffers", "ema": Arrays, "moments": Moments, "step", "frozen_steps": int32 []}
State = dict[str, Any]
# losses float32 [N], gradient norm float32 [], finite bool []
Report = tuple[mx.array, mx.array, mx.array]
# {"images": float32 [n, H, W, C], "targets": float32 [n, classes], "share": float32 [n], of the mean loss}: the n
# images of the batch's N that are this process's
Inputs = dict[str, mx.array]
# {"gradients", "buffers": Arrays, "mean": float32 []}, summed over the parts of a batch that have been passed
Sums = dict[str, Any]


class StepContext(NamedTuple):
    """What an update is made of. `trained` names the parameters that it moves, all or with `frozen` the head's;
    `traced` is called whenever Python runs a step."""

    network: Network
    optimizer: OptimSpec
    loss: losses.Loss
    trained: frozenset[str]
    frozen: bool
    traced: Callable[[], None]
    replicas: Replicas = Replicas()

    @property
    def fixed(self) -> bool:
        """Whether the running statistics are used in training, and stay."""
        return self.frozen or self.optimizer.fixed_statistics


def initial_state(spec: OptimSpec, arrays: Arrays) -> State:
    """The state of a run that has not begun, around the network's arrays."""
    parameters = {name: value for name, value in arrays.items() if not is_buffer(name)}
    return {
        "parameters": parameters,
        "buffers": {name: value for name, value in arrays.items() if is_buffer(name)},
        "ema": dict(arrays) if spec.ema else {},
        "moments": optim.fresh(spec, parameters),
        "step": mx.array(0, mx.int32),
        "frozen_steps": mx.array(0, mx.int32),
    }


def train_step(context: StepContext) -> Callable[[State, Arrays, Arrays, mx.array], tuple[State, Report]]:
    """The update as a function of (state, batch, mix, hyperparams)."""

    def step(state: State, batch: Arrays, mix: Arrays, hyperparams: mx.array) -> tuple[State, Report]:
        context.traced()
        inputs = prepare_inputs(context.network, batch, mix, context.replicas)
        sums, each = gradients_of(context, state["parameters"], state["buffers"], inputs)
        state, total, finite = apply_update(context, state, sums, hyperparams)
        return state, (each, total, finite)

    return step


def prepare_inputs(network: Network, batch: Arrays, mix: Arrays, replicas: Replicas) -> Inputs:
    """This process's part of the batch as the network takes it, mixed; normalised from bytes, which are a quarter of
    their float32 values. Of several processes the batch has the `partners` of this one's images, too."""
    mine = replicas.mine
    partners = batch["images"][mix["permutation"]] if replicas.count == 1 else batch["partners"]
    images, other = (normalise(network, x) for x in (batch["images"], partners))
    targets = mine(batch["targets"]), batch["targets"][mine(mix["permutation"])]
    images, mixed = mixup(images, other, *targets, {name: mine(rows) for name, rows in mix.items()})
    return {"images": images, "targets": mixed, "share": mine(batch["weights"] / mx.sum(batch["weights"]))}


def mixup(
    images: mx.array, other: mx.array, targets: mx.array, other_targets: mx.array, mix: Arrays
) -> tuple[mx.array, mx.array]:
    """Mixup and CutMix of `contract.MixPlan`, without its permutation: float images `[N, H, W, C]` and targets
    `[N, classes]` of images and of their partners."""
    share, label_share = mix["blend"][:, None, None, None], mix["own"][:, None]
    top, bottom, left, right = (mix["box"][:, i, None] for i in range(4))
    rows, columns = mx.arange(images.shape[1])[None], mx.arange(images.shape[2])[None]
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
    images = mx.where(inside[..., None], other, share * images + (1 - share) * other)
    return images, label_share * targets + (1 - label_share) * other_targets


def gradients_of(context: StepContext, parameters: Arrays, buffers: Arrays, inputs: Inputs) -> tuple[Sums, mx.array]:
    """The gradients of the inputs' part in the mean loss, and their losses `[N]`."""

    def objective(trained: Arrays) -> tuple[mx.array, mx.array, Arrays]:
        arrays = {**parameters, **trained, **buffers}
        logits, moved = forward(context.network, arrays, inputs["images"], training=True, frozen=context.fixed)
        each = context.loss(logits, inputs["targets"])
        return mx.sum(each * inputs["share"]), each, moved

    trained = {name: value for name, value in parameters.items() if name in context.trained}
    # With respect to what the network computes with: float32 gradients of bf16 would be copies of the same digits.
    trained = {name: cast(context.network, name, value) for name, value in trained.items()}
    (mean, each, moved), gradients = mx.value_and_grad(objective)(trained)
    return {"gradients": gradients, "buffers": moved, "mean": mean}, each


def apply_update(
    context: StepContext, state: State, sums: Sums, hyperparams: mx.array
) -> tuple[State, mx.array, mx.array]:
    """The state after the update, or as it was if that is not finite; the gradients' norm; whether it is finite."""
    spec, gradients = context.optimizer, sums["gradients"]
    lr, weight_decay, ema_decay, clip_norm = (hyperparams[i] for i in range(4))
    total = optim.norm(gradients)
    finite = mx.isfinite(sums["mean"]) & mx.isfinite(total)
    count = state["step"] + 1
    # Zeros in place of gradients that are not to be taken; bf16 ones are widened here, in the update's own kernels.
    gradients = {n: mx.where(finite, g, mx.array(0, g.dtype)).astype(mx.float32) for n, g in gradients.items()}
    limit = mx.where(finite, total, 0.0)
    gradients = optim.limited(spec, state["parameters"], gradients, limit, clip_norm)
    counts = (count, count - state["frozen_steps"])
    moved, moments = optim.update(
        spec,
        state["parameters"],
        gradients,
        state["moments"],
        (lr, weight_decay),
        counts,
        context.network.dtype,
        finite,
    )
    parameters = {**state["parameters"], **moved}
    buffers = {name: mx.where(finite, sums["buffers"][name], old) for name, old in state["buffers"].items()}
    new = {
        "parameters": parameters,
        "buffers": buffers,
        "ema": optim.averaged(state["ema"], {**parameters, **buffers}, mx.where(finite, ema_decay, 1.0)),
        "moments": moments,
        "step": mx.where(finite, count, state["step"]),
        "frozen_steps": state["frozen_steps"] + int(context.frozen) * finite.astype(mx.int32),
    }
    return new, total, finite


class Parts(NamedTuple):
    """The same update in parts, for batches whose activations do not fit: `prepare` and `none` once, `add` for each
    micro-batch of the prepared inputs, `reduce`, which is not to be compiled, with the losses of all, `apply` once."""

    prepare: Callable[[Arrays, Arrays], Inputs]
    none: Callable[[State], Sums]
    add: Callable[[Arrays, Sums, Inputs], tuple[Sums, mx.array]]
    reduce: Callable[[Sums, mx.array], tuple[Sums, mx.array]]
    apply: Callable[[State, Sums, mx.array], tuple[State, mx.array, mx.array]]


def train_step_in_parts(context: StepContext) -> Parts:
    """The functions of an update in parts; BatchNorm sees and averages each micro-batch for itself."""

    def prepare(batch: Arrays, mix: Arrays) -> Inputs:
        return prepare_inputs(context.network, batch, mix, context.replicas)

    def none(state: State) -> Sums:
        zeros = {n: mx.zeros_like(p) for n, p in state["parameters"].items() if n in context.trained}
        return {"gradients": zeros, "buffers": state["buffers"], "mean": mx.array(0.0)}

    def add(parameters: Arrays, sums: Sums, inputs: Inputs) -> tuple[Sums, mx.array]:
        context.traced()
        new, each = gradients_of(context, parameters, sums["buffers"], inputs)
        gradients = {name: g + new["gradients"][name] for name, g in sums["gradients"].items()}
        return {**new, "gradients": gradients, "mean": sums["mean"] + new["mean"]}, each

    def reduce(sums: Sums, each: mx.array) -> tuple[Sums, mx.array]:
        return context.replicas.reduce(sums, each, not context.fixed)

    def apply(state: State, sums: Sums, hyperparams: mx.array) -> tuple[State, mx.array, mx.array]:
        return apply_update(context, state, sums, hyperparams)

    return Parts(prepare, none, add, reduce, apply)


def evaluate(network: Network) -> Callable[[Arrays, mx.array], mx.array]:
    """float32 logits `[N, C]` as a function of (arrays, uint8 images)."""

    def logits(arrays: Arrays, images: mx.array) -> mx.array:
        return forward(network, arrays, normalise(network, images), training=False)[0]

    return logits


def features(network: Network, classifier: str) -> Callable[[Arrays, mx.array], mx.array]:
    """float32 pooled features `[N, D]`, the input of the last linear layer, as a function of (arrays, uint8 images).

    They are what timm's `forward_head(forward_features(x), pre_logits=True)` gives. `classifier` is that layer's dotted
    path, where a number is a position in a list.
    """
    *path, last = (int(key) if key.isdecimal() else key for key in classifier.split("."))
    owner: Any = network.module
    for key in path:
        owner = owner[key]

    def pooled(arrays: Arrays, images: mx.array) -> mx.array:
        layer, inputs = owner[last], list[mx.array]()

        def take(x: mx.array) -> mx.array:
            inputs.append(x)
            return layer(x)

        owner[last] = take
        try:
            forward(network, arrays, normalise(network, images), training=False)
        finally:
            owner[last] = layer
        return inputs[0].astype(mx.float32)

    return pooled
