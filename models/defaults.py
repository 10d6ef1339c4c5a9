"""Per-model defaults of fine-tuning that depend on the architecture: learning rate and batch size.

Settings that are the same for every model have their defaults in `config.schema`, not here.
"""

from __future__ import annotations

from models.families import FAMILIES
from models.registry import ZOO, ModelSpec

_ZOO_RATES = {"VisionTransformer": 3e-5, "SwinTransformer": 5e-5}  # mlx-image's, by their class
_ZOO_RATE = 1e-4
_LARGE = 150_000_000
# (image size from which it holds, images a batch), largest first.
_BATCHES = ((480, 8), (384, 12), (65, 16), (0, 64))


def learning_rate(spec: ModelSpec) -> float:
    """The peak AdamW rate to fine-tune `spec` with: its family's, halved from 150 million parameters on."""
    rate = _ZOO_RATES.get(spec.cls, _ZOO_RATE) if spec.family == ZOO else FAMILIES[spec.family].lr
    return rate / 2 if spec.parameters >= _LARGE else rate


def batch_size(spec: ModelSpec) -> int:
    """Images a batch by the input's size, so that a base-sized model trains in about 16 GB."""
    size = spec.preprocessing.size
    return next(batch for least, batch in _BATCHES if size >= least)
