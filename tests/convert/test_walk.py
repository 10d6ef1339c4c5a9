"""Every architecture converts to both formats: a tenth of the kinds, drawn by key; `make conversions` walks all."""

from __future__ import annotations

import pytest

from data import keyed
from models import registry
from tests.convert import walk

KINDS = sorted(walk.networks(by_kind=True))
TENTH = sorted(keyed.rng(0, "a tenth of the architectures").choice(KINDS, -(-len(KINDS) // 10), replace=False))
# Each has something that coremltools or the evaluator once had wrong or did not know.
KNOWN = (
    "mobilenetv2_035",  # clip
    "maxvit_tiny_tf_224",  # the tanh form of GELU, which coremltools writes as the exact one
    "aimv2_large_patch14_224",  # RMSNorm, whose epsilon coremltools does not scale
    "convnext_zepto_rms",  # rsqrt, square
    "ecaresnet26t",  # a convolution over one dimension
    "resnetblur18",  # padding that mirrors
    "test_vit",  # a position table that is resized at run time
)

# Open faults, each strict: the test fails when one is mended and stays listed here.
OPEN = {
    "resnet50_gn": "its group norm does not take the cut-down width, so that the walk cannot make it",
    "vit_dpwee_patch16_reg1_gap_256": "coremltools refuses its scalars of rank zero",
    "vit_dwee_patch16_reg1_gap_256": "coremltools refuses its scalars of rank zero",
}


def _listed(arch: str) -> object:
    marks = [pytest.mark.xfail(reason=OPEN[arch], strict=True)] if arch in OPEN else []
    return pytest.param(arch, marks=marks)


@pytest.mark.parametrize("arch", map(_listed, TENTH))
def test_both_formats_answer_as_torch_does(arch: str) -> None:
    row = walk.compare(arch)
    assert row.within, row


@pytest.mark.parametrize("arch", KNOWN)
def test_core_ml_answers_as_torch_does(arch: str) -> None:
    row = walk.compare(arch, ("coreml",))
    assert row.within, row


def test_every_architecture_is_walked() -> None:
    walked = {arch for members in walk.networks().values() for arch in members}
    assert walked == {arch for arch in registry.names() if not registry.engines(registry.get(arch))["torch"]}
