"""Functions of the canonical parameter name and shape: rates of single layers, decay, the head, Muon's matrices.

`optimizer` combines them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from backends.contract import is_buffer
from config.errors import ConfigError
from models.families import FAMILIES, LayerGroups
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
    if model.family not in FAMILIES:
        raise ConfigError(
            f"optim.layer_decay: the layers of the family {model.family} are not known; leave it 1, or choose a model "
            f"of {', '.join(FAMILIES)}"
        )
    keys = {name: _layer_key(FAMILIES[model.family].layers, name) for name in names if not is_buffer(name)}
    # The tail, such as the last norm, shares the rate of the last block.
    order = sorted(set(keys.values()) - {_TAIL})
    last = max((i for i, key in enumerate(order) if key < _TAIL), default=0)
    index = {**{key: i for i, key in enumerate(order)}, _TAIL: last}
    return {name: decay ** (len(order) - 1 - index[key]) for name, key in keys.items()}


_STEM, _BLOCK, _TAIL, _HEAD = (0,), 1, (2,), (3,)


def _layer_key(layers: LayerGroups, name: str) -> tuple[int, ...]:
    """A key that sorts parameters by their layer."""
    if re.match(layers.stem, name):
        return _STEM
    if match := re.match(layers.opening, name):
        return (_BLOCK, int(match[1]), 0)
    if match := re.match(layers.block, name):
        return (_BLOCK, *map(int, match.groups()))
    return _TAIL if re.match(layers.tail, name) else _HEAD


def _below(names: Iterable[str], prefixes: Iterable[str]) -> frozenset[str]:
    starts = tuple(f"{prefix}." for prefix in prefixes if prefix)
    return frozenset(name for name in names if name.startswith(starts))


def _is_table(name: str) -> bool:
    return any(segment in _TABLES for segment in name.split("."))


def _is_matrix(shape: tuple[int, ...]) -> bool:
    if len(shape) < 2 or 1 in shape[:2]:
        return False
    return min(shape[0], int(np.prod(shape[1:]))) >= _LEAST_SIDE
