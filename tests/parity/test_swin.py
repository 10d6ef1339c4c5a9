"""Swin in MLX is timm's: windows, shifts, padding, biases."""

from __future__ import annotations

from dataclasses import replace

import pytest

import ports
from config.errors import ConfigError
from tests.parity.harness import check_gradients, check_logits
from tests.parity.shrink import check_fresh, shrunk

ARCH = "swin_tiny_patch4_window7_224"
THREE = {"embed_dim": 16, "depths": [2, 2, 1], "num_heads": [1, 2, 4], "window_size": 4}


@pytest.mark.parametrize(
    ("size", "args"),
    [
        # 15, 8, 4 tokens a side: pixels beyond the last patch, padding before each merging.
        (61, THREE),
        (48, {**THREE, "window_size": [3, 6, 2]}),
    ],
)
def test_logits_with_padding_and_with_windows_of_several_sizes(size: int, args: dict) -> None:
    check_logits(shrunk(ARCH, size, args))


def test_gradients_are_timms() -> None:
    check_gradients(shrunk(ARCH, 44, {**THREE, "depths": [2, 1, 1]}))


def test_fresh_weights_are_drawn_as_timms() -> None:
    check_fresh(shrunk(ARCH, 48, {**THREE, "embed_dim": 32}))


def test_what_is_not_built_is_refused() -> None:
    spec = shrunk(ARCH, 48, THREE)
    with pytest.raises(ConfigError, match="attn_drop_rate"):
        ports.create(replace(spec, args={**spec.args, "attn_drop_rate": 0.1}))
    with pytest.raises(ConfigError, match="window_size"):
        ports.create(replace(spec, args={**spec.args, "window_size": [4, 4]}))
