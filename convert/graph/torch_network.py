"""The torch modules that are converted: timm's networks with their cards' preprocessing inside. Formats come after.

A `Network` takes float NCHW RGB pixels in [0, 255], one array for each input of its card, and gives logits `[N, C]`: a
`Classifier`, or an ensemble of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import CondConv2d, conv2d_same
from torch import Tensor, nn
from torch.nn import functional as F

from backends.contract import Weights
from backends.torch import model as torch_model
from models import registry
from models.card import Card, Preprocessing


class Network(Protocol):
    """The interface that the converters need of an `nn.Module`."""

    def __call__(self, *pixels: Tensor) -> Tensor:
        """float NCHW pixels in [0, 255], for each input of the card, to logits `[N, C]` of the same dtype."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Each once."""

    def halve(self) -> None:
        """Compute inside in half precision, in place."""

    def double(self) -> Network:
        """Compute in double precision, in place."""

    def float(self) -> Network:
        """Compute in single precision, in place."""


class Classifier(nn.Module):
    """A network that takes pixels: float NCHW RGB in [0, 255] to logits `[N, C]`, both fp32 (fp64 after `.double()`).

    Normalisation is one subtraction and one product for each channel, in the input's dtype; `model` may be in fp16.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing):
        super().__init__()
        self.model = model
        for layer in model.modules():
            if type(layer) is CondConv2d:
                layer.__class__ = _MixedExperts
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64) * 255
        std = torch.tensor(preprocessing.std, dtype=torch.float64) * 255
        self.register_buffer("mean", mean.reshape(1, 3, 1, 1).float())
        self.register_buffer("scale", (1 / std).reshape(1, 3, 1, 1).float())

    def forward(self, pixels: Tensor) -> Tensor:
        """float32 `[N, C]`."""
        x = (pixels - self.mean) * self.scale
        return self.model(x.to(next(self.model.parameters()).dtype)).to(pixels.dtype)

    def halve(self) -> None:
        """Compute the network in half precision; pixels, normalisation and logits stay as they are."""
        self.model.half()


class _MixedExperts(CondConv2d):
    """timm's convolution with a kernel for each image, a mixture of experts' kernels, as the mixture of the experts'
    outputs, which is equal: the formats have one kernel for all images of a batch."""

    def forward(self, x: Tensor, routing_weights: Tensor) -> Tensor:
        """float `[N, C, H, W]`, of weights `[N, experts]`."""
        convolve = conv2d_same if self.dynamic_padding else F.conv2d
        kernels = self.weight.reshape(self.num_experts, *self.weight_shape)
        outputs = [
            convolve(x, kernel, None, self.stride, self.padding, self.dilation, self.groups) for kernel in kernels
        ]
        terms = [routing_weights[:, number, None, None, None] * output for number, output in enumerate(outputs)]
        if self.bias is not None:
            terms.append((routing_weights @ self.bias)[:, :, None, None])
        return sum(terms[1:], terms[0])


class Exported(nn.Module):
    """A network of an artefact's images: `pixels` converts them to float NCHW in [0, 255]; with softmax if wanted."""

    def __init__(self, classifier: Network, pixels: Callable[[Tensor], Tensor], probabilities: bool):
        super().__init__()
        self.classifier, self.pixels, self.probabilities = classifier, pixels, probabilities

    def forward(self, *images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits, and probabilities where wanted, float32 `[N, C]` each."""
        logits = self.classifier(*map(self.pixels, images))
        return (logits, torch.softmax(logits, -1)) if self.probabilities else logits


def from_levels(images: Tensor) -> Tensor:
    """Pixels of `[N, S, S, 3]` in [0, 255]."""
    return images.permute(0, 3, 1, 2).float()


def from_fractions(images: Tensor) -> Tensor:
    """Pixels of `[N, 3, S, S]` in [0, 1]."""
    return images * 255


def classifier(weights: Weights, card: Card) -> Classifier:
    """The card's network in evaluation mode with canonical weights; `WeightsError` when they do not fit it."""
    model = torch_model.build(registry.of_card(card, card.model))
    torch_model.load_canonical(model, weights, f"the weights of {card.model}")
    return Classifier(model, card.preprocessing).eval().requires_grad_(False)


@torch.no_grad()
def once(network: Network, *images: NDArray[np.uint8], dtype: torch.dtype = torch.float32) -> NDArray:
    """Logits `[N, C]` of uint8 `[N, S, S, 3]` for each input, on the CPU; the network computes in `dtype`."""
    pixels = (torch.from_numpy(np.ascontiguousarray(np.moveaxis(batch, 3, 1))) for batch in images)
    return network(*(batch.to(dtype) for batch in pixels)).numpy()


def size(network: Network) -> int:
    """Bytes of its parameters, each counted once."""
    return sum(p.numel() * p.element_size() for p in network.parameters())


def reference(
    network: Network, batches: Callable[[], Iterable[Sequence[NDArray[np.uint8]]]]
) -> tuple[NDArray, NDArray]:
    """The original's logits `[N, C]` of all batches, uint8 `[N, S, S, 3]` for each input: in float32 and in float64.

    The network itself is converted to float64, since a large ensemble has no room twice, and back, which loses nothing.
    """
    single = np.concatenate([once(network, *batch) for batch in batches()])
    network.double()
    try:
        return single, np.concatenate([once(network, *batch, dtype=torch.float64) for batch in batches()])
    finally:
        network.float()
