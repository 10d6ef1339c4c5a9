"""Small variants of real architectures for the parity tests, and the check of what fresh weights are drawn from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import torch

import ports
from backends.torch import model as torch_model
from models import registry
from models.registry import ModelSpec
from ports.common import layers


def shrunk(arch: str, size: int, args: dict[str, Any], **options: Any) -> ModelSpec:
    """`arch` at `size` pixels with some of timm's constructor arguments replaced; options as `registry.get`'s."""
    full = registry.get(arch, image_size=size, **{"num_classes": 5, **options})
    return replace(full, args={**full.args, **args})


def check_fresh(spec: ModelSpec) -> None:
    """Fresh parameters are drawn as timm's: constants are equal, the others have timm's spread.

    The spread of n draws is known to 1 / sqrt(2 n); six deviations of both are allowed.
    """
    mx.random.seed(1)
    mine = layers.canonical(ports.create(spec))
    torch.manual_seed(1)
    theirs = torch_model.to_arrays(torch_model.canonical_tensors(torch_model.build(spec)))
    assert mine.keys() == theirs.keys()
    wrong = {}
    for name, want in theirs.items():
        if want.std() <= 1e-7 * np.abs(want).max():
            same = np.array_equal(mine[name], want)
        else:
            same = abs(mine[name].std() / want.std() - 1) < 6 / np.sqrt(want.size)
        if not same:
            wrong[name] = (float(mine[name].mean()), float(mine[name].std()), float(want.mean()), float(want.std()))
    assert not wrong, f"{spec.name}: (mean, std) here, (mean, std) in timm: {wrong}"
