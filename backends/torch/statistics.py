"""BatchNorm's running statistics taken anew, for weights that no step has seen, such as averaged ones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from backends.contract import Precision
from backends.torch.precision import autocast
from backends.torch.step import Input


@torch.no_grad()
def recalibrate(model: nn.Module, prepare: Input, precision: Precision, batches: Iterable[Tensor]) -> None:
    """Set them to the mean over uint8 `batches` of each batch's statistics, as torch's `swa_utils.update_bn` does.

    Unlike there, dropout and drop-path are off. A model without BatchNorm stays as it is, and no batch is taken.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    before = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's cumulative mean
        norm.train()
    try:
        for images in batches:
            with autocast(precision, images.device):
                model(prepare(images))
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
