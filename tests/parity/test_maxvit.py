"""MaxViT in MLX is timm's: TensorFlow's padding and offsets, timm's own tables and MLPs."""

from __future__ import annotations

import pytest

import ports
from config.errors import ConfigError
from tests.parity.harness import check_gradients
from tests.parity.shrink import check_fresh, shrunk

TINY = {"embed_dim": [32, 64], "depths": [1, 1], "block_type": ["M", "M"], "stem_width": [8, 16]}
TF = {**TINY, "head_hidden_size": 24}
# BatchNorm takes the mean away again, so what is added before it has no influence in training.
BEFORE_NORM = "a constant per channel before BatchNorm"


def test_gradients_and_batch_statistics_are_timms() -> None:
    check_gradients(
        shrunk("maxvit_tiny_tf_224", 64, TF),
        {"stem.conv1.bias": BEFORE_NORM, "stages.*.conv.pre_norm.bias": BEFORE_NORM},
    )


@pytest.mark.parametrize(("arch", "args"), [("maxvit_tiny_tf_224", TF), ("maxvit_rmlp_small_rw_224", TINY)])
def test_fresh_weights_are_drawn_as_timms(arch: str, args: dict) -> None:
    check_fresh(shrunk(arch, 64, {**args, "embed_dim": [64, 64]}))


def test_what_is_not_built_is_refused() -> None:
    with pytest.raises(ConfigError, match="coatnet_0_rw_224"):
        ports.create(shrunk("coatnet_0_rw_224", 64, {}))
    with pytest.raises(ConfigError, match="multiple of 32"):
        ports.create(shrunk("maxvit_tiny_tf_224", 80, TF))
