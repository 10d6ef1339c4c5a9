"""RegNetX, RegNetY and RegNetZ in MLX against timm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import ports
from config.errors import ConfigError
from models import registry
from models.registry import ModelSpec
from tests.parity import harness

# One or two blocks a stage: whole, untrained networks amplify rounding too much.
SHALLOW = {"depth": 6, "w0": 16, "wa": 24.0, "wm": 2.0, "group_size": 8}


def spec(arch: str, size: int = 64, act: str | None = None, **options: Any) -> ModelSpec:
    """The shallow `arch` for five classes on `size` pixels."""
    full = registry.get(arch, image_size=size, **{"num_classes": 5, **options})
    return replace(full, args={**full.args, **SHALLOW, **({"act_layer": act} if act else {})})


# SiLU: a ReLU network's gradient jumps where a rounding error flips a sign, in torch against itself too.
@pytest.mark.parametrize(("arch", "size"), [("regnety_002", 64), ("regnetx_002", 71)])
def test_gradients_and_batch_statistics_are_timms(arch: str, size: int) -> None:
    harness.check_gradients(spec(arch, size, act="silu"))


@pytest.mark.parametrize(("arch", "argument"), [("regnetv_040", "preact"), ("regnety_040_sgn", "norm_layer")])
def test_what_is_not_ported_is_refused_by_its_argument(arch: str, argument: str) -> None:
    with pytest.raises(ConfigError, match=argument):
        ports.create(registry.get(arch))
