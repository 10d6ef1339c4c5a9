"""Every registered kind of architecture, at its own widths and size, breaks no rule of Metal's: in training and in
inference, in each precision, with a frozen trunk, in micro-batches, with blocks that are computed again."""

from __future__ import annotations

import pytest

from tests.metal import traces
from tests.metal.rules import Trace, faults
from tests.parity import kinds

# 16 images or their multiples: another batch makes MLX unfold in the weights' gradient of grouped convolutions.
MICRO = 16


def check(trace: Trace) -> None:
    found = faults(trace)
    assert not found, "\n".join(f"{rule}: {'; '.join(lines)}" for rule, lines in found.items())


@pytest.mark.parametrize("arch", [a for family in kinds.ORDINARY for a in kinds.representatives(family)])
def test_a_kind_trains_and_predicts(arch: str) -> None:
    spec = traces.shallow(arch)
    check(traces.gradients_of(spec, "bf16"))
    check(traces.inference(spec, "fp32"))


@pytest.mark.parametrize("family", kinds.ORDINARY)
def test_a_family_in_every_mode(family: str) -> None:
    spec = traces.shallow(kinds.ORDINARY[family])
    for precision in ("fp32", "fp16"):
        check(traces.gradients_of(spec, precision))
    check(traces.gradients_of(spec, "bf16", frozen=True))
    check(traces.gradients_of(spec, "bf16", 4 * MICRO, recomputed=True))
    for precision in ("bf16", "fp16"):
        check(traces.inference(spec, precision))
    for precision in ("fp32", "bf16"):
        check(traces.update(spec, precision))


@pytest.mark.parametrize("arch", ["vit_base_patch16_siglip_224", "vit_pe_core_tiny_patch16_384"])
def test_pooling_by_attention_has_a_gradient(arch: str) -> None:
    """Few queries are computed as a plain product; the blocks' own attention stays fused."""
    trace = traces.gradients_of(traces.shallow(arch))
    check(trace)
    assert trace.attention
    assert min(queries for queries, _ in trace.attention) > 8
