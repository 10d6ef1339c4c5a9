"""Per-model defaults of fine-tuning that depend on the architecture: learning rate and batch size.

Settings that are the same for every model have their defaults in `config.schema`, not here.
"""

from __future__ import annotations

from models.registry import ZOO, ModelSpec

# AdamW, cosine, batches of 8 to 32, pretrained weights. Attention without convolutions wants gentler steps.
_RATES = {
    "convnext": 1e-4,
    "efficientnet": 3e-4,
    "mobilenetv3": 5e-4,
    "swin": 5e-5,
    "swinv2": 5e-5,
    "resnet": 2e-4,
    "regnet": 2e-4,
    "vit": 3e-5,
    "eva": 3e-5,
    "maxvit": 5e-5,
    # mlx-image's, by their class.
    "VisionTransformer": 3e-5,
    "SwinTransformer": 5e-5,
}
_OTHER_RATE = 1e-4
_LARGE = 150_000_000
# (image size from which it holds, images a batch), largest first.
_BATCHES = ((480, 8), (384, 12), (65, 16), (0, 64))


def learning_rate(spec: ModelSpec) -> float:
    """The peak AdamW rate to fine-tune `spec` with: its family's, halved from 150 million parameters on."""
    rate = _RATES.get(spec.cls if spec.family == ZOO else spec.family, _OTHER_RATE)
    return rate / 2 if spec.parameters >= _LARGE else rate


def batch_size(spec: ModelSpec) -> int:
    """Images a batch by the input's size, so that a base-sized model trains in about 16 GB."""
    size = spec.preprocessing.size
    return next(batch for least, batch in _BATCHES if size >= least)
