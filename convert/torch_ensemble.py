"""A whole ensemble as one torch module: views, members, temperatures and weights, equal to what `infer.runner` does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convert import torch_resize, torch_views
from convert.source import Source
from convert.torch_graph import Classifier, Network, classifier
from infer.ensemble import Combine


def build(source: Source) -> Network:
    """The network of a checkpoint or of a whole ensemble, in evaluation mode, equal tensors shared.

    Raises `WeightsError` for weights that do not fit.
    """
    if source.ensemble is None:
        (part,) = source.parts
        return classifier(part.weights, part.card)
    whole = EnsembleGraph(
        [classifier(part.weights, part.card) for part in source.parts],
        [part.weight for part in source.parts],
        [part.temperature for part in source.parts],
        source.ensemble.views,
        source.ensemble.combine,
        source.ensemble.temperature,
        [part.input for part in source.parts],
        torch_resize.Resized(source.card.preprocessing, source.resized) if source.resized else None,
    )
    share_equal(whole)
    return whole.eval()


class EnsembleGraph(nn.Module):
    """Float NCHW RGB pixels in [0, 255] to log probabilities `[N, C]`, normalised, fp32 (fp64 after `.double()`).

    Member m sees the form `inputs[m]` of each image: these are given, or `resized` makes them of the one that is.
    All views of a batch go through a member at once. Means of probabilities are taken as logarithms of sums of
    exponentials about their maximum, so that no precision underflows.
    """

    def __init__(
        self,
        members: Sequence[Classifier],
        weights: Sequence[float],
        temperatures: Sequence[float],
        views: tuple[str, ...],
        combine: Combine,
        temperature: float,
        inputs: Sequence[int],
        resized: torch_resize.Resized | None = None,
    ):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.shares = [weight / sum(weights) for weight in weights]
        self.temperatures, self.temperature = list(temperatures), temperature
        self.views, self.combine = views, combine
        self.inputs, self.resized = list(inputs), resized

    def forward(self, *pixels: Tensor) -> Tensor:
        """float32 `[N, C]`."""
        views = len(self.views)
        forms = pixels if self.resized is None else self.resized(pixels[0])
        seen = [torch.cat([torch_views.apply(view, form) for view in self.views]) for form in forms]
        equal = [1 / views] * views
        answers = []
        for member, temperature, place in zip(self.members, self.temperatures, self.inputs, strict=True):
            logits = normalised(member(seen[place]) / temperature)
            answers.append(self._mixed(logits.reshape(views, -1, logits.shape[-1]), equal))
        return normalised(self._mixed(torch.stack(answers), self.shares) / self.temperature)

    def _mixed(self, together: Tensor, shares: Sequence[float]) -> Tensor:
        """The weighted mean of answers given as log probabilities `[K, N, C]`, itself as log probabilities `[N, C]`."""
        if len(shares) == 1:
            return together[0]
        share = torch.tensor(shares, dtype=together.dtype).reshape(-1, 1, 1)
        if self.combine == "logits":
            return normalised((together * share).sum(0))
        highest = together.amax(0)
        return ((together - highest).exp() * share).sum(0).log() + highest

    def halve(self) -> None:
        """Compute the members in half precision; the mixture stays as it is."""
        for member in self.members:
            member.halve()


def normalised(logits: Tensor) -> Tensor:
    """Log probabilities: log softmax over the last dimension, written out so that no format splits it unstably."""
    shifted = logits - logits.amax(-1, keepdim=True)
    return shifted - shifted.exp().sum(-1, keepdim=True).log()


def share_equal(module: nn.Module) -> int:
    """Let equal parameters and buffers of the module be one tensor, so that they are stored once; returns how many."""
    known: dict[tuple[object, ...], Tensor] = {}
    shared = 0
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                digest = hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).digest()
                first = known.setdefault((tuple(tensor.shape), tensor.dtype, digest), tensor)
                shared += first is not tensor
                table[name] = first
    return shared
