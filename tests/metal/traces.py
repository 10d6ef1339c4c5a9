"""Traced updates and predictions of networks of real widths and sizes with few layers; nothing of them is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_map

from backends.contract import LossSpec, OptimSpec
from backends.mlx import losses, model, recompute, step
from models import registry
from models.registry import ModelSpec
from ports.common import gradients
from tests.metal import mlx_graph, mlx_traffic
from tests.metal.rules import Trace
from training.policy import groups

Args = dict[str, Any]
BATCH = 16
# What Metal is most used with, and what its choice of kernels depends on.
DTYPES = {"fp32": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}


def shallow(arch: str, classes: int = 10) -> ModelSpec:
    """`arch` at its own widths and image size with as few layers as show each of their kinds."""
    spec = registry.get(arch, num_classes=classes)
    args = dict(spec.args)
    for name, most in {"depths": 2, "layers": 1, "depth": 1}.items():
        if isinstance(args.get(name), Sequence):
            args[name] = [min(most, count) for count in args[name]]
        elif name in args and spec.family != "regnet":  # whose widths follow from its depth
            args[name] = most
    if spec.family == "maxvit":
        args["depths"] = [min(2, count) for count in args["model_cfg"]["depths"]]
    if spec.family in ("vit", "eva"):
        args["depth"] = 1
    if spec.family in ("efficientnet", "mobilenetv3"):
        args["block_args"] = [stage[:2] for stage in args["block_args"]]
    return replace(spec, args=args)


@contextmanager
def uncomputed() -> Iterator[list[tuple[int, int]]]:
    """With weights left undrawn, as on a GPU, and fused attention noted: (queries, head size) of each."""
    seen: list[tuple[int, int]] = []
    fused = mx.fast.scaled_dot_product_attention

    def noted(q: mx.array, *rest: Any, **named: Any) -> mx.array:
        seen.append((q.shape[2], q.shape[3]))
        return fused(q, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mx, "eval", lambda *_: None)
        patch.setattr(mx.fast, "scaled_dot_product_attention", noted)
        patch.setattr(gradients, "SPARING", True)
        patch.setattr(gradients, "CHOSEN", dict.fromkeys(gradients.DEFAULTS, gradients.OURS))
        yield seen


def update(spec: ModelSpec, precision: str, batch: int = BATCH) -> Trace:
    """A whole update with AdamW and an EMA."""
    with uncomputed() as seen:
        return Trace(mlx_traffic.step_graph(spec, precision, batch), True, seen)


def gradients_of(
    spec: ModelSpec, precision: str = "bf16", batch: int = BATCH, frozen: bool = False, recomputed: bool = False
) -> Trace:
    """The gradients of one (micro-)batch, added to those before; with `frozen` of the head alone, with `recomputed`
    every block is a checkpoint."""
    with uncomputed() as seen:
        network, arrays = model.build(spec, None, "bf16" if precision == "bf16" else "fp32", 0)
        network = replace(network, dtype=DTYPES[precision])
        if recomputed:
            recompute.wrap(network, spec.name)
        optimizer = OptimSpec(head=groups.head(arrays, spec))
        state = step.initial_state(optimizer, arrays)
        trained = optimizer.trained(state["parameters"], frozen)
        parts = step.train_step_in_parts(
            step.StepContext(network, optimizer, losses.make(LossSpec()), trained, frozen, lambda: None)
        )
        size = spec.preprocessing.size
        inputs = {
            "images": mx.zeros((batch, size, size, spec.in_chans)),
            "targets": mx.zeros((batch, spec.num_classes)),
            "share": mx.ones(batch),
        }
        whole = {"parameters": state["parameters"], "sums": parts.none(state), "inputs": inputs}

        def flat(*values: mx.array) -> list[mx.array]:
            left = iter(values)
            given = tree_map(lambda _: next(left), whole)
            return [v for _, v in tree_flatten(parts.add(given["parameters"], given["sums"], given["inputs"]))]

        return Trace(mlx_graph.traced(flat, *(v for _, v in tree_flatten(whole))), True, seen)


def inference(spec: ModelSpec, precision: str = "fp32", batch: int = BATCH) -> Trace:
    """Logits of one chunk; the engine has no fp16, which is traced all the same."""
    with uncomputed() as seen:
        network, arrays = model.build(spec, None, "bf16" if precision == "bf16" else "fp32", 0)
        network = replace(network, dtype=DTYPES[precision])
        images = mx.zeros((batch, spec.preprocessing.size, spec.preprocessing.size, 3), mx.uint8)
        names, evaluate = list(arrays), step.evaluate(network)

        def flat(images: mx.array, *values: mx.array) -> list[mx.array]:
            return [evaluate(dict(zip(names, values, strict=True)), images)]

        return Trace(mlx_graph.traced(flat, images, *arrays.values()), False, seen)
