"""Small networks of each family as the converters get them, with weights that make every layer count."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from convert.graph.torch_network import Classifier
from models.card import Card, Preprocessing

CLASSES = ("cat", "dog", "horse", "7", "emu, flightless")
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "convnext": ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (16, 32, 32, 64)}, 32),
    "convnextv2": ("convnextv2_atto", {"depths": (1, 1, 2, 1), "dims": (16, 32, 32, 64)}, 32),
    "efficientnet": ("efficientnet_b0", {}, 64),
    "tf_efficientnet": ("tf_efficientnet_b0", {}, 64),
    "resnet": ("resnet26d", {}, 64),
    "regnet": ("regnety_002", {}, 64),
    "vit": ("vit_tiny_patch16_224", {"depth": 2, "img_size": 32}, 32),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"depths": (2, 2), "embed_dim": 32, "num_heads": (1, 2), "img_size": 56},
        56,
    ),
    "swinv2": (
        "swinv2_tiny_window8_256",
        {"depths": (2, 2), "embed_dim": 32, "num_heads": (1, 2), "img_size": 64},
        64,
    ),
    "mobilenetv3": ("mobilenetv3_small_050", {}, 64),
    "maxvit": ("test_maxvit", {"img_size": 64}, 64),
    "eva": ("eva02_tiny_patch14_224", {"depth": 2, "img_size": 28}, 28),
}
# The Core ML evaluator has no `clip` yet.
ONNX_ONLY: dict[str, tuple[str, dict[str, Any], int]] = {"mobilenetv2": ("mobilenetv2_035", {}, 64)}


class Network(NamedTuple):
    """A network, its card, random images uint8 `[3, S, S, 3]` and torch's own logits of them in fp32 and fp64."""

    classifier: Classifier
    card: Card
    images: NDArray[np.uint8]
    single: NDArray[np.float32]
    double: NDArray[np.float64]

    @property
    def floor(self) -> float:
        """torch's own rounding error."""
        return float(np.abs(self.single - self.double).max())


def build(family: str) -> Network:
    arch, options, size = (FAMILIES | ONNX_ONLY)[family]
    torch.manual_seed(0)
    model = timm.create_model(arch, num_classes=len(CLASSES), **options)
    card = Card(arch, CLASSES, Preprocessing(size=size, mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.25)))
    images = np.random.default_rng(0).integers(0, 256, (16, size, size, 3), dtype=np.uint8)
    classifier = Classifier(model, card.preprocessing)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        # Some families begin with a classifier of nearly zero, behind which no fault would show.
        for head in (m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == len(CLASSES)):
            head.weight.normal_(std=head.in_features**-0.5)
        _settle_batch_norm(classifier, pixels(images))
    classifier.eval().requires_grad_(False)
    few = images[:3]
    double = copy.deepcopy(classifier).double()(pixels(few).double()).numpy()
    return Network(classifier, card, few, classifier(pixels(few)).numpy(), double)


def pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


def _settle_batch_norm(classifier: Classifier, images: torch.Tensor) -> None:
    """Running statistics of real activations: untrained EfficientNets explode without."""
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    classifier.train()
    classifier(images)
