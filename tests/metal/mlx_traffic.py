"""The kernels of one MLX training step and the bytes that they move on Metal, by kind, from the traced graph.

`python -m tests.metal.mlx_traffic --model convnext_tiny --batch 16 --precision bf16`. Nothing is computed and no GPU is
needed: these are counts, not times. How they are counted stands in `mlx_graph` and `mlx_bytes`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from backends.contract import LossSpec, OptimSpec
from backends.mlx import losses, model, step
from config.errors import TandemError
from models import registry
from models.registry import ModelSpec
from ports.common import gradients
from tests.metal import mlx_bytes, mlx_graph

MODELS = (
    "convnext_tiny",
    "tf_efficientnetv2_b0",
    "efficientnet_b0",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table for each model and precision, or one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m tests.metal.mlx_traffic", description=__doc__)
    parser.add_argument("--model", nargs="+", default=MODELS)
    parser.add_argument("--size", type=int, help="pixels of a side (default: the model's)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--library", action="store_true", help="MLX's own gradients where there is a choice")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(argv)
    found: dict[str, Any] = {}
    gradients.SPARING = True
    gradients.CHOSEN.update(dict.fromkeys(gradients.DEFAULTS, gradients.LIBRARY if given.library else gradients.OURS))
    try:
        for name in given.model:
            spec = registry.get(name, num_classes=1000, image_size=given.size)
            for precision in given.precision:
                found.setdefault(name, {})[precision] = counts(spec, precision, given.batch)
    except TandemError as error:
        print(error, file=sys.stderr)
        return 1
    about = {"mlx": importlib.metadata.version("mlx"), "batch": given.batch, "size": given.size or "the model's"}
    print(json.dumps({**about, "models": found}) if given.json else "\n\n".join(tables(about, found)))
    return 0


def counts(spec: ModelSpec, precision: Any, batch: int) -> dict[str, Any]:
    """`{kernels, bytes, widened, kinds: {kind: {kernels, bytes}}}` of one update with AdamW and an EMA.

    `widened` are the bytes that kernels move which make float32 of a bf16 activation.
    """
    graph = mlx_graph.fused(step_graph(spec, precision, batch))
    found = mlx_bytes.kernels(graph, batch)
    kinds: dict[str, dict[str, int]] = {}
    for kernel in found:
        row = kinds.setdefault(kernel.kind, {"kernels": 0, "bytes": 0})
        row["kernels"], row["bytes"] = row["kernels"] + 1, row["bytes"] + kernel.bytes
    return {
        "kernels": len(found),
        "bytes": sum(k.bytes for k in found),
        "widened": sum(k.bytes for k in found if k.widens),
        "kinds": dict(sorted(kinds.items(), key=lambda row: -row[1]["bytes"])),
    }


def step_graph(spec: ModelSpec, precision: Any, batch: int) -> mlx_graph.Graph:
    """The traced graph of one whole update, not yet fused; nothing is computed but fresh weights."""
    network, arrays = model.build(spec, None, precision, seed=0)
    optimizer, size = OptimSpec(ema=True), spec.preprocessing.size
    state = step.initial_state(optimizer, arrays)
    update = step.train_step(
        step.StepContext(
            network, optimizer, losses.make(LossSpec()), frozenset(state["parameters"]), False, lambda: None
        )
    )
    images = {
        "images": mx.zeros((batch, size, size, 3), mx.uint8),
        "targets": mx.zeros((batch, spec.num_classes)),
        "weights": mx.ones(batch),
    }
    mix = {
        "permutation": mx.zeros(batch, mx.int32),
        "blend": mx.ones(batch),
        "box": mx.zeros((batch, 4), mx.int32),
        "own": mx.ones(batch),
    }
    whole = {"state": state, "batch": images, "mix": mix, "knobs": mx.array(np.zeros(4, np.float32))}

    def flat(*values: mx.array) -> list[mx.array]:
        left = iter(values)
        given = tree_map(lambda _: next(left), whole)
        return [v for _, v in tree_flatten(update(given["state"], given["batch"], given["mix"], given["knobs"]))]

    return mlx_graph.traced(flat, *(v for _, v in tree_flatten(whole)))


def tables(about: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Markdown, one table for each model and precision."""
    return [
        "\n".join(
            [
                f"{name}, {precision}, batch {about['batch']}, {about['size']} pixels, mlx {about['mlx']}: "
                f"{row['kernels']} kernels, {row['bytes'] / 1e6:,.0f} MB, widened {row['widened'] / 1e6:,.0f} MB",
                "",
                "| kind | kernels | MB |",
                "|---|---|---|",
                *(f"| {kind} | {k['kernels']} | {k['bytes'] / 1e6:,.1f} |" for kind, k in row["kinds"].items()),
            ]
        )
        for name, rows in found.items()
        for precision, row in rows.items()
    ]


if __name__ == "__main__":
    raise SystemExit(main())
