"""From the members' logits to the ensemble's log probabilities, in a graph: as `merge` and `postprocess` do in NumPy.

All steps use log probabilities relative to their maxima, so that no precision underflows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ensemble.calibration.maps import Vector
from ensemble.ensemble_file import Ensemble
from ensemble.fitted_params import FittedParams
from ensemble.weighting.average import Merge


class EnsembleHead(nn.Module):
    """An ensemble's steps after its networks. `groups` are the indices of the members of each run (see `postprocess`).

    `layers` may hold a stack and vector scaling; isotonic maps and means of ranks have no form here.
    """

    coef: Tensor
    intercept: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, ensemble: Ensemble, groups: Sequence[Sequence[int]], layers: FittedParams):
        super().__init__()
        self.ensemble, self.groups = ensemble, groups
        self.stacked, self.scaled = layers.stack is not None, isinstance(layers.map, Vector)
        if layers.stack is not None:
            self.register_buffer("coef", torch.from_numpy(layers.stack.coef).float())
            self.register_buffer("intercept", torch.from_numpy(layers.stack.intercept).float())
        if isinstance(layers.map, Vector):
            self.register_buffer("scale", torch.from_numpy(layers.map.scale).float())
            self.register_buffer("bias", torch.from_numpy(layers.map.bias).float())

    def merged(self, m: int, logits: Tensor) -> Tensor:
        """Log probabilities `[N, C]` of member m from its logits of each view, `[V, N, C]`."""
        temperature = self.ensemble.members[m].temperature
        each, after = (temperature, 1.0) if self.ensemble.tempered == "views" else (1.0, temperature)
        views = normalised(logits / each)
        together = mixed(views, [1 / len(views)] * len(views), self.ensemble.view_merge)
        return together if after == 1 else normalised(together / after)

    def forward(self, predictions: Sequence[Tensor]) -> Tensor:
        """Log probabilities `[N, C]` of the ensemble from those of its members."""
        if self.stacked:
            runs = [self._mean(predictions, group) for group in self.groups]
            features = torch.cat([rows - rows.mean(-1, keepdim=True) for rows in runs], -1)
            logs = normalised(nn.functional.linear(features, self.coef, self.intercept))
        else:
            logs = self._mean(predictions, range(len(predictions)))
        logs = normalised(logs / self.ensemble.temperature)
        if self.scaled:
            logs = normalised(logs * self.scale + self.bias)
        if self.ensemble.clip:
            logs = normalised(torch.maximum(logs, torch.tensor(math.log(self.ensemble.clip), dtype=logs.dtype)))
        return logs

    def _mean(self, predictions: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
        weights = [self.ensemble.members[number].weight for number in numbers]
        shares = [weight / sum(weights) for weight in weights]
        how: Merge = "logits" if self.ensemble.combine == "logits" else "probabilities"
        return mixed(torch.stack([predictions[number] for number in numbers]), shares, how)


def mixed(together: Tensor, shares: Sequence[float], how: Merge) -> Tensor:
    """Answers given as log probabilities `[K, N, C]` as one, `[N, C]`: a weighted mean, or the normalised maximum."""
    if len(shares) == 1:
        return together[0]
    if how == "max":
        return normalised(together.amax(0))
    share = torch.tensor(shares, dtype=together.dtype).reshape(-1, 1, 1)
    if how in ("logits", "geometric"):
        return normalised((together * share).sum(0))
    highest = together.amax(0)
    return ((together - highest).exp() * share).sum(0).log() + highest


def normalised(logits: Tensor) -> Tensor:
    """Log probabilities: log softmax over the last dimension, written out so that no format splits it unstably."""
    shifted = logits - logits.amax(-1, keepdim=True)
    return shifted - shifted.exp().sum(-1, keepdim=True).log()
