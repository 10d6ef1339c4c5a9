"""Training steps of each family are torch's: the losses of twenty, and the moments of one from a state that moved."""

from __future__ import annotations

import pytest

from models import registry
from models.registry import ModelSpec
from tests.parity import harness, kinds

# ReLU with BatchNorm diverges chaotically, torch from itself too: these train with SiLU in its place.
SMOOTHED = ("efficientnet", "mobilenetv3", "resnet", "regnet")
SIZE = {"swin": 44, "swinv2": 32, "efficientnet": 64, "mobilenetv3": 64}


def network(family: str, patch: pytest.MonkeyPatch) -> ModelSpec:
    act = "silu" if family in SMOOTHED else None
    return kinds.tiny(kinds.ORDINARY[family], patch, SIZE.get(family), act)


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_the_losses_of_twenty_adamw_steps_are_torchs(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.check_training(network(family, monkeypatch))


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_moments_move_between_the_engines_by_name(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.check_moments(network(family, monkeypatch), kinds.ZERO.get(family))
