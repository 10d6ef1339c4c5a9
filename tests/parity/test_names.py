"""Every architecture's parameter names and shapes in MLX are timm's, so that any timm file loads as it is."""

from __future__ import annotations

import pytest
import torch

import ports
from backends.torch import model as torch_model
from config.errors import ConfigError
from models import registry
from ports import layers

FAMILIES = [family for family in registry.FAMILIES if ports.supported(family)]
# What issue 3 promises of the families whose tables hold more than that.
PROMISED = {
    "convnext": "convnext*",
    "swin": "swin_*",
    "swinv2": "swinv2_*",
    "efficientnet": "efficientnet_b? tf_efficientnet_b? tf_efficientnetv2_* efficientnetv2_*",
    "resnet": "resnet?? resnet??? resnet*d wide_resnet* resnext* seresnext*",
    "regnet": "regnety_??? regnety_???? regnetx_???",
    "mobilenetv3": "mobilenetv3_* mobilenetv4_conv_* tf_mobilenetv3_*",
}


def archs(family: str) -> list[str]:
    return [arch for arch in registry.names() if registry.get(arch).family == family]


def mlx_shapes(arch: str) -> dict[str, tuple[int, ...]]:
    """Canonical name to shape in timm's layout; nothing is computed, since MLX is lazy."""
    places = layers.places(ports.create(registry.get(arch, num_classes=7)))
    return {
        name: tuple(module[key].shape[i] for i in (0, 3, 1, 2))
        if isinstance(module, layers.Conv2d) and key == "weight"
        else tuple(module[key].shape)
        for name, (module, key) in places.items()
    }


def torch_shapes(arch: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = torch_model.build(registry.get(arch, num_classes=7))
    return {name: tuple(tensor.shape) for name, tensor in torch_model.canonical_tensors(model).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_are_timms(family: str) -> None:
    compared = 0
    for arch in archs(family):
        try:
            found = mlx_shapes(arch)
        except ConfigError as refusal:
            assert arch in str(refusal)
            continue
        assert found == torch_shapes(arch), arch
        compared += 1
    assert compared


@pytest.mark.parametrize("family", PROMISED)
def test_what_the_zoo_promises_is_built(family: str) -> None:
    patterns = PROMISED[family].split()
    promised = [a for a in archs(family) if any(a in registry.names(p) for p in patterns)]
    assert len(promised) > 5
    for arch in promised:
        ports.create(registry.get(arch))
