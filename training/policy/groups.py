"""Per-parameter multipliers of the learning rate and the weight decay: functions of the canonical name and shape."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from backends.contract import is_buffer

_TABLES = ("pos_embed", "cls_token", "reg_token", "dist_token", "relative_position_bias_table", "logit_scale", "latent")


def multipliers(weights: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """(rate, decay) multipliers for each trained parameter.

    Decay is 0 for norms, biases, layer scales (everything of one dimension or less) and for embedding tables, as in
    timm's `param_groups_weight_decay` with the models' own `no_weight_decay` lists.
    """
    return {name: (1.0, 0.0 if undecayed(name, w) else 1.0) for name, w in weights.items() if not is_buffer(name)}


def undecayed(name: str, weight: np.ndarray) -> bool:
    """Whether weight decay leaves this parameter alone."""
    return weight.ndim <= 1 or name.endswith(".bias") or any(part in _TABLES for part in name.split("."))
