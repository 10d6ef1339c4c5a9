"""The torch modules that are converted: timm's network with the card's preprocessing inside. Formats come after."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backends.contract import Weights
from backends.torch import model as torch_model
from infer.predictors.checkpoint import spec_of
from models.card import Card, Preprocessing


class Classifier(nn.Module):
    """A network that takes pixels: float NCHW RGB in [0, 255] to logits `[N, C]`, both fp32 (fp64 after `.double()`).

    Normalisation is one subtraction and one product for each channel, in the input's dtype; `model` may be in fp16.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing):
        super().__init__()
        self.model = model
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64) * 255
        std = torch.tensor(preprocessing.std, dtype=torch.float64) * 255
        self.register_buffer("mean", mean.reshape(1, 3, 1, 1).float())
        self.register_buffer("scale", (1 / std).reshape(1, 3, 1, 1).float())

    def forward(self, pixels: Tensor) -> Tensor:
        """float32 `[N, C]`."""
        x = (pixels - self.mean) * self.scale
        return self.model(x.to(next(self.model.parameters()).dtype)).to(pixels.dtype)


class FromBytes(nn.Module):
    """A classifier of uint8 `[N, S, S, 3]`, as the runner has its images."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """float32 `[N, C]`."""
        return self.classifier(images.permute(0, 3, 1, 2).float())


class WithProbabilities(nn.Module):
    """A classifier that also gives the softmax of its logits; `channels_last` for pixels `[N, S, S, 3]`."""

    def __init__(self, classifier: Classifier, channels_last: bool):
        super().__init__()
        self.classifier = classifier
        self.channels_last = channels_last

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities, float32 `[N, C]` each."""
        logits = self.classifier(pixels.permute(0, 3, 1, 2) if self.channels_last else pixels)
        return logits, torch.softmax(logits, -1)


def classifier(weights: Weights, card: Card) -> Classifier:
    """The card's network in evaluation mode with canonical weights; `WeightsError` when they do not fit it."""
    model = torch_model.build(spec_of(card, card.model))
    torch_model.load_canonical(model, weights, f"the weights of {card.model}")
    return Classifier(model, card.preprocessing).eval().requires_grad_(False)


def reference(weights: Weights, card: Card) -> Callable[[NDArray[np.uint8]], tuple[NDArray, NDArray]]:
    """The original: a function of uint8 `[N, S, S, 3]` that gives its logits on the CPU in float32 and in float64."""
    single = classifier(weights, card)
    double = copy.deepcopy(single).double()

    def answer(images: NDArray[np.uint8]) -> tuple[NDArray, NDArray]:
        pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, 3, 1)))
        return single(pixels.float()).numpy(), double(pixels.double()).numpy()

    return answer
