"""Every registered kind of architecture, at its own widths and size, breaks no rule of Metal's: in training and in
inference, in each precision, with a frozen trunk, in micro-batches, with blocks that are computed again.

Of each kind the smallest architecture is traced, and of each family the largest, one that is drawn, and one for every
size of attention's heads. `-m slow` traces all, mlx-image's as well.
"""

from __future__ import annotations

import pytest

from data.rng import philox
from models import registry
from tests.metal import traces
from tests.metal.rules import Trace, faults
from tests.parity import kinds

# 16 images or their multiples: another batch makes MLX unfold in the weights' gradient of grouped convolutions.
MICRO = 16


# mlx-image's own code sums and gathers as MLX does.
ZOO = [
    "vit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "regnet_y_400mf",
    "efficientnet_b0",
    "mobilenet_v3_small",
]
ZOO_MAY = ("half_sums", "scatter")


def check(trace: Trace, leave: tuple[str, ...] = ()) -> None:
    found = faults(trace, leave)
    assert not found, "\n".join(f"{rule}: {'; '.join(lines)}" for rule, lines in found.items())


def trains_and_predicts(arch: str, leave: tuple[str, ...] = ()) -> None:
    spec = traces.shallow(arch)
    check(traces.gradients_of(spec, "bf16"), leave)
    check(traces.inference(spec, "fp32"), leave)


def built(family: str) -> dict[str, int]:
    """The architectures of a family that MLX builds, with their numbers of parameters."""
    specs = [registry.get(arch) for arch in registry.members(family)]
    return {spec.arch: spec.parameters for spec in specs if not registry.engines(spec)["mlx"]}


def head_size(arch: str) -> int:
    """Of the blocks' attention; Metal's kernels are for some sizes. 0 where it is one for a whole family."""
    args = registry.get(arch).args
    return args["embed_dim"] // args["num_heads"] if isinstance(args.get("num_heads"), int) else 0


def others(family: str) -> list[str]:
    """The largest architecture, one that is drawn, and the smallest for each head size that no representative has."""
    sizes, seen = built(family), kinds.representatives(family)
    heads = {head_size(arch) for arch in seen}
    chosen = [max(sizes, key=sizes.__getitem__)]
    for arch in sorted(sizes, key=sizes.__getitem__):
        if head_size(arch) not in heads:
            heads.add(head_size(arch))
            chosen.append(arch)
    left = sorted(sizes.keys() - {*seen, *chosen})
    return [*chosen, *philox(0, f"metal {family}").permutation(left)[:1].tolist()]


REPRESENTATIVES = [arch for family in kinds.ORDINARY for arch in kinds.representatives(family)]
OTHERS = [arch for family in kinds.ORDINARY for arch in others(family) if arch not in REPRESENTATIVES]


@pytest.mark.parametrize("arch", [*REPRESENTATIVES, *OTHERS])
def test_a_kind_trains_and_predicts(arch: str) -> None:
    trains_and_predicts(arch)


@pytest.mark.parametrize("name", ZOO)
def test_networks_of_mlx_image_run_as_fast(name: str) -> None:
    trains_and_predicts(f"mlxim/{name}", ZOO_MAY)


def test_resnets_of_mlx_image_break_no_rule() -> None:
    trains_and_predicts("mlxim/resnet18")


@pytest.mark.slow
def test_every_network_of_mlx_image_breaks_no_rule() -> None:
    for arch in registry.members(registry.ZOO):
        trains_and_predicts(arch, ZOO_MAY)


@pytest.mark.slow
@pytest.mark.parametrize("family", kinds.ORDINARY)
def test_every_architecture_trains_and_predicts(family: str) -> None:
    for arch in built(family):
        trains_and_predicts(arch)


@pytest.mark.parametrize("family", kinds.ORDINARY)
def test_a_family_keeps_the_rules_in_every_mode(family: str) -> None:
    spec = traces.shallow(kinds.ORDINARY[family])
    check(traces.gradients_of(spec, "fp16"))  # fp32's and bf16's are in the updates below
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


def test_blocks_that_are_computed_again_are_traced_twice() -> None:
    spec = traces.shallow("vit_tiny_patch16_224")
    once, twice = (traces.gradients_of(spec, "bf16", recomputed=again) for again in (False, True))
    assert (len(once.attention), len(twice.attention)) == (2, 4), "the tracer's two passes, and again in the gradient"
    blocks = [sum(1 for _ in trace.named("AddMM")) for trace in (once, twice)]
    assert blocks[1] == blocks[0] + 3, "queries, keys and values; the projection; the MLP's first layer"
