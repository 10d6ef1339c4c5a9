"""One record a family of architectures: what Tandem knows of it beyond the tables that are recorded from timm.

Adding a family takes a record here and, for MLX, a file `ports/NAME.py`; see docs/reference/models.md.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerGroups:
    """Where parameters stand in a family, as patterns at the beginning of their names.

    The numbers that `block` captures order the blocks; `opening` leads into a stage and belongs to its first block;
    `tail` follows the last block, such as the last norm. What no pattern matches is the classifier's.
    """

    stem: str
    block: str
    opening: str = "(?!)"
    tail: str = "(?!)"


@dataclass(frozen=True)
class Family:
    """`timm_module` is the module of `timm.models` that defines the family.

    `lr` is the peak AdamW rate to fine-tune it with: pretrained weights, cosine, batches of 8 to 32. `gradcam` is the
    module whose input Grad-CAM takes as features: what pools those of the whole image, or, where a class token does
    that, the last attention, since the patches of the last block's output have no part in the logits.
    `gradcam_channels_last` says that timm's maps there are `[N, h, w, K]`.
    `takes_img_size`: position tables or windows are fixed to the input size when the network is built.
    """

    timm_module: str
    lr: float
    layers: LayerGroups
    gradcam: str
    gradcam_channels_last: bool = False
    takes_img_size: bool = False


_VIT = LayerGroups("cls_token|reg_token|pos_embed|patch_embed|norm_pre", r"blocks\.(\d+)", tail="norm")
_SWIN = LayerGroups("patch_embed", r"layers\.(\d+)\.\w+\.(\d+)", r"layers\.(\d+)\.downsample", "norm")

FAMILIES = {
    "convnext": Family(
        "convnext",
        1e-4,
        LayerGroups("stem", r"stages\.(\d+)\.blocks\.(\d+)", r"stages\.(\d+)\.downsample", "norm_pre"),
        "head",
    ),
    "efficientnet": Family(
        "efficientnet",
        3e-4,
        LayerGroups("conv_stem|bn1", r"blocks\.(\d+)\.(\d+)", tail="conv_head|bn2"),
        "global_pool",
    ),
    "mobilenetv3": Family("mobilenetv3", 5e-4, LayerGroups("conv_stem|bn1", r"blocks\.(\d+)\.(\d+)"), "global_pool"),
    # Attention without convolutions wants lower rates.
    "swin": Family("swin_transformer", 5e-5, _SWIN, "head", gradcam_channels_last=True, takes_img_size=True),
    "swinv2": Family("swin_transformer_v2", 5e-5, _SWIN, "head", gradcam_channels_last=True, takes_img_size=True),
    "resnet": Family("resnet", 2e-4, LayerGroups("conv1|bn1|maxpool", r"layer(\d+)\.(\d+)"), "global_pool"),
    "regnet": Family("regnet", 2e-4, LayerGroups("stem", r"s(\d+)\.b(\d+)"), "head"),
    "vit": Family("vision_transformer", 3e-5, _VIT, "blocks.-1.attn", takes_img_size=True),
    "eva": Family("eva", 3e-5, _VIT, "blocks.-1.attn", takes_img_size=True),
    "maxvit": Family("maxxvit", 5e-5, LayerGroups("stem", r"stages\.(\d+)", tail="norm"), "head", takes_img_size=True),
}
