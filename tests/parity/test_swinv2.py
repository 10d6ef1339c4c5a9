"""SwinV2 in MLX is timm's: cosine attention, computed biases, norms after the branches."""

from __future__ import annotations

import pytest

from tests.parity.harness import check_gradients, check_logits
from tests.parity.shrink import check_fresh, shrunk

ARCH = "swinv2_tiny_window8_256"
TWO = {"embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}
# The last stage is a single token: a window of one has no offset to scale.
PRETRAINED = {**TWO, "depths": [2, 1, 1], "num_heads": [1, 2, 4], "pretrained_window_sizes": [3, 3, 2]}


@pytest.mark.parametrize(("size", "args"), [(61, TWO), (16, PRETRAINED), (40, PRETRAINED)])
def test_logits_with_padding_and_with_windows_of_pretraining(size: int, args: dict) -> None:
    check_logits(shrunk(ARCH, size, args))


def test_gradients_are_timms_and_finite_with_padded_tokens() -> None:
    # 11 tokens a side: padded tokens have keys of zero length, whose gradient must stay finite.
    check_gradients(shrunk(ARCH, 44, {**TWO, "depths": [2, 1]}))


def test_fresh_weights_are_drawn_as_timms() -> None:
    check_fresh(shrunk(ARCH, 48, {**TWO, "embed_dim": 32}))
