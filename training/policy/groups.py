"""Functions of the canonical parameter name and shape: rates of single layers, decay, the head, Muon's matrices.

What they are combined to is in `optimizer`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from backends.contract import is_buffer
from config.errors import ConfigError
from models.registry import ModelSpec

_TABLES = ("pos_embed", "cls_token", "reg_token", "dist_token", "relative_position_bias_table", "logit_scale", "latent")
# The smaller side from which on a matrix has a direction worth orthogonalising, timm's.
_LEAST_SIDE = 4


def undecayed(name: str, weight: np.ndarray) -> bool:
    """Whether weight decay leaves this parameter alone.

    Norms, biases, layer scales (everything of one dimension or less) and embedding tables, as in timm's
    `param_groups_weight_decay` with the models' own `no_weight_decay` lists.
    """
    return weight.ndim <= 1 or name.endswith(".bias") or _is_table(name)


def head(names: Iterable[str], model: ModelSpec) -> frozenset[str]:
    """The parameters of the classifier, or of both where a distilled model has two."""
    prefixes = (model.classifier,) if isinstance(model.classifier, str) else model.classifier
    return _below(names, prefixes)


def matrices(weights: Mapping[str, np.ndarray], model: ModelSpec) -> frozenset[str]:
    """The parameters that Muon orthogonalises: hidden matrices and kernels, not the first layer, the classifier,
    embedding tables, vectors, or depthwise kernels (Jordan 2024, with timm's criteria of shape)."""
    first = (model.first_conv,) if isinstance(model.first_conv, str) else model.first_conv
    apart = head(weights, model) | _below(weights, first)
    return frozenset(
        name
        for name, w in weights.items()
        if name.endswith(".weight") and name not in apart and not _is_table(name) and _is_matrix(w.shape)
    )


def layer_rates(names: Iterable[str], model: ModelSpec, decay: float) -> dict[str, float]:
    """Learning-rate multipliers that fall by `decay` from each layer to the one before it, 1 at the head.

    Layers are the stem, each block, and the head, as timm's `param_groups_layer_decay` counts them. Raises
    `ConfigError` for a family whose layers are not known here.
    """
    if decay == 1:
        return {}
    if model.family not in LAYERS:
        raise ConfigError(
            f"optim.layer_decay: the layers of the family {model.family} are not known; leave it 1, or choose a model "
            f"of {', '.join(LAYERS)}"
        )
    places = {name: LAYERS[model.family].place(name) for name in names if not is_buffer(name)}
    # The tail, such as the last norm, shares the rate of the last block.
    order = sorted({place for place in places.values() if place != _TAIL})
    last = max((i for i, place in enumerate(order) if place < _TAIL), default=0)
    index = {**{place: i for i, place in enumerate(order)}, _TAIL: last}
    return {name: decay ** (len(order) - 1 - index[place]) for name, place in places.items()}


Place = tuple[int, ...]
_STEM, _BLOCK, _TAIL, _HEAD = (0,), 1, (2,), (3,)


@dataclass(frozen=True)
class LayerGroups:
    """Where parameters stand in a family, as patterns at the beginning of their names.

    The numbers that `block` captures order the blocks; `opening` is what leads into a stage and belongs to its first.
    """

    stem: str
    block: str
    opening: str = "(?!)"
    tail: str = "(?!)"

    def place(self, name: str) -> Place:
        """A key that sorts parameters by their layer."""
        if re.match(self.stem, name):
            return _STEM
        if found := re.match(self.opening, name):
            return (_BLOCK, int(found[1]), 0)
        if found := re.match(self.block, name):
            return (_BLOCK, *map(int, found.groups()))
        return _TAIL if re.match(self.tail, name) else _HEAD


_VIT = LayerGroups("cls_token|reg_token|pos_embed|patch_embed|norm_pre", r"blocks\.(\d+)", tail="norm")
_SWIN = LayerGroups("patch_embed", r"layers\.(\d+)\.\w+\.(\d+)", r"layers\.(\d+)\.downsample", "norm")
LAYERS: Mapping[str, LayerGroups] = {
    "convnext": LayerGroups("stem", r"stages\.(\d+)\.blocks\.(\d+)", r"stages\.(\d+)\.downsample", "norm_pre"),
    "efficientnet": LayerGroups("conv_stem|bn1", r"blocks\.(\d+)\.(\d+)", tail="conv_head|bn2"),
    "mobilenetv3": LayerGroups("conv_stem|bn1", r"blocks\.(\d+)\.(\d+)"),
    "swin": _SWIN,
    "swinv2": _SWIN,
    "resnet": LayerGroups("conv1|bn1|maxpool", r"layer(\d+)\.(\d+)"),
    "regnet": LayerGroups("stem", r"s(\d+)\.b(\d+)"),
    "vit": _VIT,
    "eva": _VIT,
    "maxvit": LayerGroups("stem", r"stages\.(\d+)", tail="norm"),
}


def _below(names: Iterable[str], prefixes: Iterable[str]) -> frozenset[str]:
    starts = tuple(f"{prefix}." for prefix in prefixes if prefix)
    return frozenset(name for name in names if name.startswith(starts))


def _is_table(name: str) -> bool:
    return any(part in _TABLES for part in name.split("."))


def _is_matrix(shape: tuple[int, ...]) -> bool:
    if len(shape) < 2 or 1 in shape[:2]:
        return False
    return min(shape[0], int(np.prod(shape[1:]))) >= _LEAST_SIDE
