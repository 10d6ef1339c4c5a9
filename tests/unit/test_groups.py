"""Rates, head and matrices by name: timm's own groups for timm's own models, and what the settings make of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from timm.optim.muon import _is_suitable_for_muon

from backends.contract import OptimSpec
from config.errors import ConfigError
from config.sections.train import Optim
from models import defaults, registry
from training.policy import groups, optimizer

MODELS = [
    "convnext_atto",
    "vit_tiny_patch16_224",
    "vit_base_patch16_siglip_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "resnet18",
    "resnet26d",
    "efficientnet_b0",
    "tf_efficientnetv2_b0",
    "mobilenetv3_small_050",
    "regnety_002",
    "eva02_tiny_patch14_224",
    "maxvit_rmlp_pico_rw_256",
]


def on_meta(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


def shapes(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {n: np.broadcast_to(np.float32(0), tuple(p.shape)) for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_layer_rates_are_timms(name: str) -> None:
    model = on_meta(name)
    rows = param_groups_layer_decay(model, layer_decay=0.7)
    theirs = {id(p): row["lr_scale"] for row in rows for p in row["params"]}
    ours = groups.layer_rates(shapes(model), registry.get(name), 0.7)
    assert len(set(ours.values())) > 3
    for parameter_name, parameter in model.named_parameters():
        assert ours[parameter_name] == pytest.approx(theirs[id(parameter)]), parameter_name


@pytest.mark.parametrize("name", MODELS)
def test_the_head_is_timms_classifier(name: str) -> None:
    model = on_meta(name)
    found = model.get_classifier()
    inside = {id(p) for one in (found if isinstance(found, tuple) else (found,)) for p in one.parameters()}
    ours = groups.head(shapes(model), registry.get(name))
    assert ours == {n for n, p in model.named_parameters() if id(p) in inside}


@pytest.mark.parametrize("name", MODELS)
def test_matrices_are_those_that_timm_finds_suitable_in_the_hidden_layers(name: str) -> None:
    model, spec = on_meta(name), registry.get(name)
    ours = groups.matrices(shapes(model), spec)
    ends = (spec.classifier, spec.first_conv)
    outer = tuple(f"{p}." for end in ends for p in ((end,) if isinstance(end, str) else end))
    for parameter_name, parameter in model.named_parameters():
        theirs = _is_suitable_for_muon(parameter, max_aspect_ratio=float("inf"))
        hidden = not parameter_name.startswith(outer) and not groups.undecayed(parameter_name, parameter)
        assert (parameter_name in ours) == (theirs and hidden), parameter_name
    assert ours


def spec_of(arch: str, **options: Any) -> OptimSpec:
    return optimizer.spec(Optim(**options), False, registry.get(arch), shapes(on_meta(arch)))


def test_head_rate_and_layer_decay_multiply() -> None:
    spec = spec_of("resnet18", layer_decay=0.5, head_lr_mult=10.0)
    assert spec.multipliers["fc.weight"] == (10.0, 1.0)
    assert spec.multipliers["layer4.1.conv2.weight"] == (0.5, 1.0)
    assert spec.multipliers["bn1.bias"] == (0.5**9, 0.0)
    assert spec.head == {"fc.weight", "fc.bias"}


def test_only_muon_has_matrices() -> None:
    assert not spec_of("resnet18").matrices
    assert "layer1.0.conv1.weight" in spec_of("resnet18", name="muon").matrices
    assert spec_of("resnet18", name="muon").momentum == 0.95
    assert spec_of("resnet18", name="lion").betas == (0.9, 0.99)


def test_rates_for_which_there_are_no_layers_or_no_head_are_refused() -> None:
    model, values = registry.get("resnet18"), shapes(on_meta("resnet18"))
    with pytest.raises(ConfigError, match=r"layer_decay.*family other"):
        optimizer.spec(Optim(layer_decay=0.9), False, replace(model, family="other"), values)
    for key, wanted in (("freeze_epochs", 1), ("head_lr_mult", 3.0)):
        with pytest.raises(ConfigError, match=rf"optim\.{key}"):
            optimizer.spec(Optim.model_validate({key: wanted}), False, replace(model, classifier=""), values)


def test_the_default_rate_suits_the_optimizer() -> None:
    model = registry.get("resnet18")
    rates = {name: optimizer.learning_rate(Optim(name=name), model) for name in ("adamw", "muon", "lion", "sgd")}
    assert rates["adamw"] == rates["muon"] == defaults.learning_rate(model)
    assert rates["lion"] < rates["adamw"] < rates["sgd"]
    assert optimizer.learning_rate(Optim(name="lion", lr=0.3), model) == 0.3
