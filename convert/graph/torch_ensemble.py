"""An ensemble as one torch module: views, members and postprocessing, equal to `infer.runner`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convert.graph import torch_resize, torch_views
from convert.graph.torch_mixing import EnsembleHead
from convert.graph.torch_network import Classifier, Network, classifier
from convert.source import Source


def build(source: Source) -> Network:
    """The network of a checkpoint or of a whole ensemble, in evaluation mode, equal tensors shared.

    Raises `WeightsError` for weights that do not fit.
    """
    if source.ensemble is None:
        (network,) = source.parts
        return classifier(network.weights(), network.card)
    graph = EnsembleGraph(
        [classifier(network.weights(), network.card) for network in source.parts],
        [network.input for network in source.parts],
        source.ensemble.views,
        EnsembleHead(source.ensemble, source.groups, source.layers),
        torch_resize.Resized(source.card.preprocessing, source.resized) if source.resized else None,
    )
    share_equal(graph)
    return graph.eval()


class EnsembleGraph(nn.Module):
    """Float NCHW RGB pixels in [0, 255] to log probabilities `[N, C]`, normalised, fp32 (fp64 after `.double()`).

    Member m gets the form `inputs[m]` of each image: these are the inputs, or `resized` computes them from the only
    one. All views of a batch pass a member at once.
    """

    def __init__(
        self,
        members: Sequence[Classifier],
        inputs: Sequence[int],
        views: tuple[str, ...],
        mixing: EnsembleHead,
        resized: torch_resize.Resized | None = None,
    ):
        super().__init__()
        self.members, self.mixing = nn.ModuleList(members), mixing
        self.inputs, self.views, self.resized = list(inputs), views, resized

    def forward(self, *pixels: Tensor) -> Tensor:
        """float32 `[N, C]`."""
        forms = pixels if self.resized is None else self.resized(pixels[0])
        views_of = [torch.cat([torch_views.apply(view, form) for view in self.views]) for form in forms]
        predictions = []
        for m, (member, source) in enumerate(zip(self.members, self.inputs, strict=True)):
            logits = member(views_of[source])
            predictions.append(self.mixing.merged(m, logits.reshape(len(self.views), -1, logits.shape[-1])))
        return torch.as_tensor(self.mixing(predictions))

    def halve(self) -> None:
        """Compute the members in half precision; the mixture stays as it is."""
        for member in self.members:
            member.halve()


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
