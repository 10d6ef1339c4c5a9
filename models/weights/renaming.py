"""Renames weights of other libraries to timm's names: Hugging Face transformers, torchvision, EfficientNet-PyTorch.

NumPy only. What timm itself maps (the papers' own files, RegNets of torchvision) is in `models.weights.torch_files`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.registry import ModelSpec

Array = NDArray[np.float32]
Rules = tuple[tuple[str, str], ...]

_QKV = {"query": 0, "key": 1, "value": 2, "q_proj": 0, "k_proj": 1, "v_proj": 2}
_HF_ATTENTION: Rules = (
    (r"\.attention\.(?:attention\.|self\.)?(query|key|value|q_proj|k_proj|v_proj)\.", r".attn.qkv#\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.self\.continuous_position_bias_mlp\.", ".attn.cpb_mlp."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
_HF_VIT: Rules = (
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.", ""),
    (r"^(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
    *_HF_ATTENTION,
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
_HF_SWIN: Rules = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.", ""),
    (r"^layers\.(\d+)\.downsample\.", r"layers.#next\1.downsample."),
    *_HF_ATTENTION,
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head.fc."),
)
_HF_CONVNEXT: Rules = (
    (r"^embeddings\.patch_embeddings\.", "stem.0."),
    (r"^embeddings\.layernorm\.", "stem.1."),
    (r"^encoder\.stages\.(\d+)\.downsampling_layer\.", r"stages.\1.downsample."),
    (r"^encoder\.stages\.(\d+)\.layers\.", r"stages.\1.blocks."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.layernorm\.", ".norm."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.grn\.", ".mlp.grn."),
    (r"\.layer_scale_parameter$", ".gamma"),
    (r"^layernorm\.", "head.norm."),
    (r"^classifier\.", "head.fc."),
)
_HF_RESNET: Rules = (
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"layer#next\1.\2."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"\.layer\.(\d+)\.convolution\.", r".conv#next\1."),
    (r"\.layer\.(\d+)\.normalization\.", r".bn#next\1."),
    (r"^classifier\.1\.", "fc."),
)
_TV_VIT: Rules = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
)
_TV_SWIN: Rules = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"^features\.(\d+)\.(reduction|norm)\.", r"layers.#half\1.downsample.\2."),
    (r"^features\.(\d+)\.(\d+)\.", r"layers.#half\1.blocks.\2."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^head\.", "head.fc."),
)
_TV_CONVNEXT: Rules = (
    (r"^features\.0\.", "stem."),
    (r"^features\.([2468])\.", r"stages.#half\1.downsample."),
    (r"^features\.([1357])\.", r"stages.#half\1.blocks."),
    (r"\.block\.0\.", ".conv_dw."),
    (r"\.block\.2\.", ".norm."),
    (r"\.block\.3\.", ".mlp.fc1."),
    (r"\.block\.5\.", ".mlp.fc2."),
    (r"\.layer_scale$", ".gamma"),
    (r"^classifier\.0\.", "head.norm."),
    (r"^classifier\.2\.", "head.fc."),
)
# The flat blocks of EfficientNet-PyTorch; `_timm_blocks` gives them timm's stages and numbers.
_LUKEMELAS: Rules = (
    (r"^_conv_stem\.", "conv_stem."),
    (r"^_bn0\.", "bn1."),
    (r"^_conv_head\.", "conv_head."),
    (r"^_bn1\.", "bn2."),
    (r"^_fc\.", "classifier."),
    (r"\._se_reduce\.", ".se.conv_reduce."),
    (r"\._se_expand\.", ".se.conv_expand."),
)


class Dialect(NamedTuple):
    """The names of one library for some families: `anchor` is a name that only it has, below a prefix or none."""

    library: str
    families: tuple[str, ...]
    anchor: str
    rules: Rules
    head: str
    dropped: tuple[str, ...] = ()


_HF = "Hugging Face transformers"
DIALECTS = (
    Dialect(_HF, ("vit",), "embeddings.position_embeddings", _HF_VIT, "classifier.", ("mask_token", "pooler.")),
    Dialect(_HF, ("swin", "swinv2"), "embeddings.patch_embeddings.projection.weight", _HF_SWIN, "classifier."),
    Dialect(_HF, ("convnext",), "embeddings.patch_embeddings.weight", _HF_CONVNEXT, "classifier."),
    Dialect(_HF, ("resnet",), "embedder.embedder.convolution.weight", _HF_RESNET, "classifier."),
    Dialect("torchvision", ("vit",), "conv_proj.weight", _TV_VIT, "heads."),
    Dialect("torchvision", ("swin", "swinv2"), "features.0.0.weight", _TV_SWIN, "head."),
    Dialect("torchvision", ("convnext",), "features.0.0.weight", _TV_CONVNEXT, "classifier."),
    Dialect("EfficientNet-PyTorch", ("efficientnet",), "_conv_stem.weight", _LUKEMELAS, "_fc."),
)


def translate(weights: Mapping[str, Array], spec: ModelSpec) -> tuple[dict[str, Array], str] | None:
    """`weights` under timm's names, and whose names they had; None where no other library's are recognised."""
    for dialect in DIALECTS:
        prefix = prefix_of(weights, dialect.anchor) if spec.family in dialect.families else None
        if prefix is not None:
            return _renamed(below(weights, prefix, dialect.head), dialect, spec), f"{dialect.library}'s names"
    return None


def prefix_of(weights: Mapping[str, Array], anchor: str) -> str | None:
    """What stands before `anchor` in a name, "" for nothing; of several, that with most names; None where none has it.

    Of copies of equal size (a teacher's, an average's) the shortest prefix is taken.
    """
    prefixes = [name.removesuffix(anchor) for name in weights if name == anchor or name.endswith(f".{anchor}")]
    if "" in prefixes or not prefixes:
        return "" if prefixes else None
    return max(prefixes, key=lambda prefix: (sum(name.startswith(prefix) for name in weights), -len(prefix), prefix))


def below(weights: Mapping[str, Array], prefix: str, head: str) -> dict[str, Array]:
    """The entries below `prefix`, without it; also a classifier `head` beside the trunk, which wrappers leave there."""
    outer = {f"{prefix.rpartition('.')[0].rpartition('.')[0]}.{head}".lstrip("."), head} if prefix else set()
    named = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    for start in outer:
        for name, value in weights.items():
            if head and name.startswith(start) and not name.startswith(prefix):
                named.setdefault(head + name.removeprefix(start), value)
    return named


def _renamed(weights: Mapping[str, Array], dialect: Dialect, spec: ModelSpec) -> dict[str, Array]:
    renamed: dict[str, Array] = {}
    qkv: dict[str, dict[int, Array]] = {}
    for name, value in weights.items():
        new = name
        for pattern, replacement in dialect.rules:
            new = re.sub(pattern, replacement, new)
        if any(word in new for word in dialect.dropped):
            continue
        new = re.sub(r"#half(\d+)", lambda m: str(int(m[1]) // 2), new)
        new = re.sub(r"#next(\d+)", lambda m: str(int(m[1]) + 1), new)
        fused = re.match(r"(.*\.qkv)#(\w+)\.(.*)", new)
        if fused:
            qkv.setdefault(f"{fused[1]}.{fused[3]}", {})[_QKV[fused[2]]] = value
        else:
            renamed[new] = value
    for name, arrays in qkv.items():
        if len(arrays) == 3:
            renamed[name] = np.concatenate([arrays[0], arrays[1], arrays[2]])
        else:  # SwinV2's keys have no bias, and its other two stay apart
            renamed |= {name.replace("qkv.bias", f"{'qkv'[i]}_bias"): array for i, array in arrays.items()}
    return _shaped(_timm_blocks(renamed) if dialect.rules is _LUKEMELAS else renamed, spec)


def _shaped(weights: dict[str, Array], spec: ModelSpec) -> dict[str, Array]:
    """The few entries that timm keeps in another form."""
    for name, value in list(weights.items()):
        if name.endswith((".gamma", ".grn.weight", ".grn.bias")):
            weights[name] = value.reshape(-1)
        elif re.search(r"\.mlp\.fc[12]\.weight$", name) and spec.args.get("conv_mlp") and value.ndim == 2:
            weights[name] = value[:, :, None, None]
        elif spec.family == "swinv2" and name.endswith(".attn.qkv.bias"):
            weights[name.replace("qkv.bias", "q_bias")], _, weights[name.replace("qkv.bias", "v_bias")] = np.split(
                weights.pop(name), 3
            )
    if "reg_token" in weights and "cls_token" in weights:
        # timm adds the class token's position to the token itself where there are registers.
        weights["cls_token"] = weights["cls_token"] + weights["pos_embed"][:, :1]
        weights["pos_embed"] = weights["pos_embed"][:, 1:]
    if spec.args.get("global_pool") == "avg" and "fc_norm.weight" not in weights and spec.family == "vit":
        for kind in ("weight", "bias"):
            if f"norm.{kind}" in weights:
                weights[f"fc_norm.{kind}"] = weights.pop(f"norm.{kind}")
    return weights


def _timm_blocks(weights: Mapping[str, Array]) -> dict[str, Array]:
    """`_blocks.7._bn1` to timm's `blocks.3.1.bn2`: blocks counted by stage, layers by their order."""
    numbers = sorted({int(m[1]) for m in (re.match(r"_blocks\.(\d+)\.", name) for name in weights) if m})
    first_of_stage = {n for n in numbers if n == 0 or _starts_stage(weights, n)}
    block_of, stage, block = {}, -1, 0
    for n in numbers:
        stage, block = (stage + 1, 0) if n in first_of_stage else (stage, block + 1)
        block_of[n] = f"blocks.{stage}.{block}"
    renamed = {}
    for name, value in weights.items():
        inner = re.match(r"_blocks\.(\d+)\.(.*)", name)
        if inner:
            expands = f"_blocks.{inner[1]}._expand_conv.weight" in weights
            name = f"{block_of[int(inner[1])]}.{_layer(inner[2], expands)}"
        renamed[name] = value
    return renamed


def _starts_stage(weights: Mapping[str, Array], n: int) -> bool:
    """A block that takes in another width than it gives starts a stage; all further blocks of a stage do not."""
    taken = weights.get(f"_blocks.{n}._expand_conv.weight", weights[f"_blocks.{n}._depthwise_conv.weight"])
    width = taken.shape[1] if f"_blocks.{n}._expand_conv.weight" in weights else taken.shape[0]
    return bool(width != weights[f"_blocks.{n}._project_conv.weight"].shape[0])


def _layer(name: str, expands: bool) -> str:
    pairs = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    if expands:
        pairs |= {"_expand_conv": "conv_pw", "_bn0": "bn1", "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
    head, _, rest = name.partition(".")
    return f"{pairs.get(head, head)}.{rest}"
