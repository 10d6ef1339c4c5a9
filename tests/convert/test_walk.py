"""Every architecture converts to both formats: a tenth of the kinds, drawn by key; `make conversions` walks all."""

from __future__ import annotations

import pytest
import timm
import torch

from convert.graph.torch_network import Classifier
from data.rng import philox
from models import registry
from models.card import Preprocessing
from tests.convert import walk

KINDS = sorted(walk.networks(by_kind=True))
TENTH = sorted(philox(0, "a tenth of the architectures").choice(KINDS, -(-len(KINDS) // 10), replace=False))
# Each has something that coremltools or the evaluator once had wrong or did not know.
KNOWN = (
    "mobilenetv2_035",  # clip
    "maxvit_tiny_tf_224",  # the tanh form of GELU, which coremltools writes as the exact one
    "aimv2_large_patch14_224",  # RMSNorm, whose epsilon coremltools does not scale
    "convnext_zepto_rms",  # rsqrt, square
    "ecaresnet26t",  # a convolution over one dimension
    "resnetblur18",  # padding that mirrors
    "resnet50_gn",  # group norms, of which coremltools makes batch_norm with an epsilon that nobody asked for
    "vit_dwee_patch16_reg1_gap_256",  # scalars of rank zero
    "tf_efficientnet_cc_b0_4e",  # a kernel for each image, of experts
    "test_vit",  # a position table that is resized at run time
)


@pytest.mark.parametrize("arch", TENTH)
def test_both_formats_answer_as_torch_does(arch: str) -> None:
    row = walk.compare(arch)
    assert row.within, row


@pytest.mark.parametrize("arch", KNOWN)
def test_core_ml_answers_as_torch_does(arch: str) -> None:
    row = walk.compare(arch, ("coreml",))
    assert row.within, row


@pytest.mark.parametrize("arch", ["efficientnet_cc_b0_4e", "tf_efficientnet_cc_b0_8e"])  # the latter pads by the input
def test_experts_outputs_are_mixed_as_timm_mixes_their_kernels(arch: str) -> None:
    torch.manual_seed(0)
    model, pixels = timm.create_model(arch, num_classes=5).eval().requires_grad_(False), torch.rand(3, 3, 64, 64)
    want = model(pixels)
    no_change = Preprocessing(size=64, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)
    torch.testing.assert_close(Classifier(model, no_change)(pixels), want, rtol=1e-4, atol=1e-4 * float(want.std()))


def test_every_architecture_is_walked() -> None:
    walked = {arch for members in walk.networks().values() for arch in members}
    assert walked == {arch for arch in registry.names() if not registry.engines(registry.get(arch))["torch"]}
