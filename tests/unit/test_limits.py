"""Sizes and batches that a network cannot take are refused before the run: no more and no fewer than fail in timm.

timm's networks are built and run without memory (meta tensors). Depth is cut down where sizes do not depend on it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import torch

import ports
from backends.torch import model as networks
from config import load
from config.errors import ConfigError, OutOfMemory
from data.rng import philox
from models import limits, registry
from tests.parity.kinds import _shape
from tests.unit.test_campaign import NEVER
from training.loop import memory
from training.run import train_run

SIZES = (8, 14, 16, 20, 24, 28, 31, 32, 33, 48, 50, 63, 64, 75, 96, 98, 100, 112, 126, 128, 160, 192, 224)
SAMPLE = 24
_TAKES_SIZE = ("vit", "eva", "swin", "swinv2", "maxvit")  # built anew for each size
_SHALLOW: dict[str, dict[str, Any]] = {
    "vit": {"depth": 1},
    "eva": {"depth": 1},
    "swin": {"depths": [2, 2, 2, 2]},
    "swinv2": {"depths": [2, 2, 2, 2]},
    "resnet": {"layers": [1, 1, 1, 1]},
}


def kinds() -> list[str]:
    """The smallest architecture of each kind of the registry that torch builds."""
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for family in registry.FAMILIES:
        for arch in registry.members(family):
            spec = registry.get(arch)
            key = json.dumps([family, spec.cls, _shape(dict(spec.args))], sort_keys=True, default=str)
            found[key].append((spec.parameters, arch))
    return sorted(min(members)[1] for members in found.values())


def sample() -> dict[str, list[int]]:
    """Some sizes of some kinds, drawn by key: what the gate runs."""
    drawn, all_kinds, rng = defaultdict(set), kinds(), philox(0, "sizes that networks take")
    for kind, size in zip(rng.permutation(all_kinds)[:SAMPLE].tolist(), rng.choice(SIZES, SAMPLE), strict=True):
        drawn[kind].add(int(size))
    return {kind: sorted(sizes) for kind, sizes in sorted(drawn.items())}


def spec_of(arch: str, size: int) -> registry.ModelSpec:
    spec = registry.get(arch, num_classes=3, image_size=size)
    return replace(spec, args={**spec.args, **_SHALLOW.get(spec.family, {})})


def values(arch: str, sizes: list[int]) -> Iterator[tuple[int, int | None]]:
    """For each size the fewest values per channel and image that a BatchNorm of timm's network sees, 0 without any;
    None where the network cannot be built or run."""
    seen: list[int] = []

    def look(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        seen.append(given[0].numel() // given[0].shape[1] // 2)

    model = None
    for size in sizes:
        spec = spec_of(arch, size)
        seen.clear()
        try:
            with torch.device("meta"):
                if model is None or spec.family in _TAKES_SIZE:
                    model = networks.build(spec).train()
                    for module in model.modules():
                        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                            module.register_forward_pre_hook(look)
                model(torch.zeros(2, 3, size, size))
            yield size, min(seen, default=0)
        except (RuntimeError, AssertionError, ZeroDivisionError, ValueError):
            yield size, None


def check(arch: str, sizes: list[int]) -> None:
    wrong = []
    for size, least in values(arch, sizes):
        spec = registry.get(arch, num_classes=3)
        taken = limits.takes(spec, size)
        if taken != (least is not None) or (taken and limits.fewest(spec, size) != (2 if least == 1 else 1)):
            wrong.append((size, least))
    assert not wrong, f"{arch}: (size, fewest values of a BatchNorm in timm, None where it does not run) {wrong}"


@pytest.mark.parametrize(("arch", "sizes"), sample().items())
def test_what_is_refused_fails_in_timm_and_what_is_let_through_runs(arch: str, sizes: list[int]) -> None:
    check(arch, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("arch", kinds())
def test_limits_are_timms_for_every_kind_and_size(arch: str) -> None:
    check(arch, list(SIZES))


def test_every_networks_own_size_is_let_through() -> None:
    for arch in registry.names():
        for tag in registry.tags(arch):
            spec = registry.get(f"{arch}.{tag}" if tag else arch)
            limits.check_size(spec, spec.preprocessing.size)


@pytest.mark.parametrize(
    ("arch", "size", "choice"),
    [
        ("maxvit_tiny_tf_224", 100, "choose 96 or 128"),
        ("convnext_atto", 16, "choose 32"),
        ("resnetaa50d", 100, "choose 98 or 127"),
        ("vit_small_patch16_224", 8, "choose 16"),
        ("test_vit", 33, "choose 32 or 48"),
    ],
)
def test_the_nearest_sizes_are_named_and_run_in_timm(arch: str, size: int, choice: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.image_size {size}: model {arch}.* {choice}$"):
        limits.check_size(registry.get(arch), size)
    nearest = [int(word) for word in choice.split() if word.isdigit()]
    found = dict(values(arch, [size, *nearest]))
    assert found.pop(size) is None
    assert None not in found.values()


def refused(engine: str, folder: Path, *words: str) -> str:
    """The line with which a run is refused, before it has a folder or reads its data."""
    missing = folder / "data"
    settings = load.parse(["--data.root", str(missing), "--out", str(folder / "runs"), *words], prog="test")
    with pytest.raises(ConfigError) as error:
        train_run.run_all(engine, settings, NEVER)
    assert not list(folder.iterdir())
    return str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "maxvit_tiny_tf_224", "--data.image_size", "100"), "data.image_size 100: model maxvit_tiny_tf"),
        (
            ("--model", "convnext_atto", "--progressive.sizes", "[24]", "--progressive.epochs", "[1]"),
            "progressive.sizes 24: model convnext_atto",
        ),
        (
            ("--model", "resnet18", "--data.image_size", "32", "--train.micro_batch", "1"),
            "train.micro_batch 1: BatchNorm of model resnet18",
        ),
        (
            ("--model", "mobilenetv4_conv_small", "--train.batch_size", "1"),
            "train.batch_size 1: BatchNorm of model mobilenetv4_conv_small",
        ),
    ],
)
def test_both_engines_refuse_in_the_same_line_before_the_run(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    lines = {refused(engine, tmp_path, *words) for engine in ("torch", "mlx")}
    assert len(lines) == 1
    assert lines.pop().startswith(said)


def test_the_batch_decides_not_the_architecture_alone() -> None:
    limits.check_batch(registry.get("resnet18"), 64, 1)
    limits.check_batch(registry.get("convnext_atto"), 32, 1)
    limits.check_batch(registry.get("resnet18"), 32, 2)
    zoo = next(arch for arch in registry.members(registry.ZOO) if arch.endswith("/resnet18"))
    with pytest.raises(ConfigError, match="mlxim"):
        limits.check_batch(registry.get(zoo), 32, 1)


def test_less_memory_never_leads_to_a_micro_batch_that_the_network_cannot_take() -> None:
    assert memory.halved(4, 8, OutOfMemory("x"), fewest=2) == 2
    with pytest.raises(OutOfMemory, match="not even 2 images at a time fit"):
        memory.halved(2, 8, OutOfMemory("x"), fewest=2)


@pytest.mark.parametrize(("arch", "sizes"), list(sample().items())[::4])
def test_what_is_let_through_has_the_shapes_in_mlx_too(arch: str, sizes: list[int]) -> None:
    for size in sizes:
        spec = spec_of(arch, size)
        if limits.takes(spec, size) and not registry.engines(spec)["mlx"]:
            model = ports.create(spec)
            model.train()
            assert model(mx.zeros((2, size, size, 3))).shape == (2, 3)  # nothing is computed
