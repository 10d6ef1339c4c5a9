"""Image sizes and batches that a network cannot take, asked of its spec before a run and without a framework.

Each rule is the arithmetic of a family's own strides, patches and windows: what it refuses fails in timm, and what it
lets through runs (`tests/unit/test_limits.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from config.errors import ConfigError
from models.registry import ZOO, ModelSpec

_LARGEST = 4096
_CONVOLUTIONAL = ("efficientnet", "mobilenetv3", "resnet", "regnet")
_ZOO_CONVOLUTIONAL = ("resnet", "regnet", "efficientnet", "mobilenet")


class _Stage(NamedTuple):
    """A stage's maps: pixels along a side, and whether BatchNorm sees maps of that size."""

    side: int
    batch_norm: bool


def check_size(spec: ModelSpec, size: int, setting: str = "data.image_size") -> None:
    """`ConfigError`, with the sizes to choose, where `spec`'s network cannot take square images of `size` pixels."""
    if takes(spec, size):
        return
    smaller = next((n for n in range(size - 1, 0, -1) if takes(spec, n)), None)
    larger = next((n for n in range(size + 1, _LARGEST) if takes(spec, n)), None)
    choice = " or ".join(str(n) for n in (smaller, larger) if n)
    raise ConfigError(f"{setting} {size}: model {spec.name} cannot take images of this size; choose {choice}")


def check_batch(spec: ModelSpec, size: int, images: int, setting: str = "train.micro_batch") -> None:
    """`ConfigError` where BatchNorm sees one value per channel when `images` pass the network at a time in training."""
    least = fewest(spec, size)
    if images < least:
        raise ConfigError(
            f"{setting} {images}: BatchNorm of model {spec.name} sees one value per channel at {size} pixels, which "
            f"has no variance; train at least {least} images at a time"
        )


def fewest(spec: ModelSpec, size: int) -> int:
    """The fewest images that may pass the network at a time in training: 2 where BatchNorm sees one value of each."""
    if spec.family == ZOO:
        arch = spec.arch.removeprefix("mlxim/")
        lone = arch.startswith(_ZOO_CONVOLUTIONAL) and _halved(size, 5) == 1
    elif spec.family in (*_CONVOLUTIONAL, "maxvit"):
        # MobileNetV4 normalises after pooling.
        lone = bool(spec.args.get("head_norm")) or any(s.side == 1 and s.batch_norm for s in _stages(spec, size))
    else:
        lone = False
    return 2 if lone else 1


def takes(spec: ModelSpec, size: int) -> bool:
    """Whether the network, built for square images of `size` pixels, runs on them."""
    if spec.family == ZOO:
        return not spec.fixed_input_size or size == spec.hub_size
    if spec.family in ("vit", "eva"):
        patch = int(spec.args.get("patch_size", 16))
        return size >= patch and (size % patch == 0 or not spec.args.get("dynamic_img_size"))
    if spec.family in ("swin", "swinv2"):
        return size >= int(spec.args.get("patch_size", 4))
    try:
        return all(stage.side > 0 for stage in _stages(spec, size))
    except _Mismatch:
        return False


class _Mismatch(Exception):
    """Two branches of a block give maps of different sizes, or windows do not divide a map."""


def _stages(spec: ModelSpec, size: int) -> Iterator[_Stage]:
    """The stages of a network whose maps shrink; `_Mismatch` where it cannot take the size."""
    if spec.family == "convnext":
        return _convnext(spec, size)
    if spec.family == "maxvit":
        return _maxvit(spec.args["model_cfg"], size)
    if spec.family == "resnet" and spec.args.get("aa_layer"):
        return _antialiased(spec, size)
    averages = spec.args.get("aa_layer") == "avg"  # which EfficientNets and MobileNets do in place of each stride
    return iter([_Stage(_halved(size) // 16 if averages else _halved(size, 5), _batch_norm(spec))])


def _convnext(spec: ModelSpec, size: int) -> Iterator[_Stage]:
    patches = str(spec.args.get("stem_type", "patch")) == "patch"
    side = size // int(spec.args.get("patch_size", 4)) if patches else _halved(size, 2)
    for _ in range(len(spec.args.get("depths", (3, 3, 9, 3))) - 1):
        side //= 2
    yield _Stage(side, False)


def _antialiased(spec: ModelSpec, size: int) -> Iterator[_Stage]:
    """ResNets that blur or average before they stride; the shortcut beside rounds odd sides up."""
    averages, side = spec.args["aa_layer"] == "AvgPool2d", _halved(size)
    for number in range(4):  # the pooling of the stem, then the stages after the first
        if averages:
            if number and side % 2:
                raise _Mismatch
            side //= 2
        elif side < 2:  # the blur mirrors the pixels at the border
            raise _Mismatch
        else:
            side = _halved(side)
        yield _Stage(side, _batch_norm(spec))


def _maxvit(config: dict[str, Any], size: int) -> Iterator[_Stage]:
    """MaxViT, MaxxViT and CoAtNet: stage by stage both branches of the first block, windows, and the position bias."""
    conv, attention = config["conv_cfg"], config["transformer_cfg"]
    window = attention["window_size"] or size // attention["partition_ratio"]
    side, expected = _halved(size), size // 2
    for entry in config["block_type"]:
        kinds = [entry] if isinstance(entry, str) else entry
        expected = _halved(expected)
        side = _pooled(side, attention["pool_type"]) if kinds[0] == "T" else _strided(side, conv)
        if "T" in kinds and side != expected:
            raise _Mismatch
        if {"M", "PM"} & set(kinds) and (not window or side % window):
            raise _Mismatch
        norms = [str((attention if kind == "T" else conv)["norm_layer"]) for kind in kinds]
        yield _Stage(side, any("batchnorm" in norm for norm in norms))


def _strided(side: int, conv: dict[str, Any]) -> int:
    """The side after a convolutional block of stride 2."""
    plain = conv["block_type"] == "convnext"  # its shortcut averages without padding whatever the configuration says
    padding = "" if plain else conv["padding"]
    shortcut = _pooled(side, "avg2" if plain else conv["pool_type"], padding)
    strides = conv["stride_mode"] != "pool"
    branch = _halved(side) if strides else _pooled(side, conv["downsample_pool_type"], padding)
    if branch != shortcut:
        raise _Mismatch
    return branch


def _pooled(side: int, kind: str, padding: str = "") -> int:
    return side // 2 if kind.endswith("2") and padding != "same" else _halved(side)


def _halved(side: int, times: int = 1) -> int:
    """The side after strides of 2 whose padding rounds up."""
    return -(-side // 2**times)


def _batch_norm(spec: ModelSpec) -> bool:
    norm = str(spec.args.get("norm_layer") or spec.args.get("model_cfg", {}).get("norm_layer") or "batchnorm").lower()
    return spec.family in _CONVOLUTIONAL and "batchnorm" in norm
