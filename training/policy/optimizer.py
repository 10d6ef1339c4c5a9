"""From the settings and the model's parameters to the `OptimSpec` and `MemorySpec` that the engines get."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from backends.contract import MemorySpec, OptimSpec, is_buffer
from config.errors import ConfigError
from config.sections.train import OPTIMIZER_RATES, Optim, Train
from models import defaults
from models.registry import ModelSpec
from training.policy import groups


def learning_rate(settings: Optim, model: ModelSpec) -> float:
    """The peak rate that the settings ask for, or one that suits the model and the optimizer."""
    return settings.lr or defaults.learning_rate(model) * OPTIMIZER_RATES[settings.name]


def spec(settings: Optim, ema: bool, model: ModelSpec, weights: Mapping[str, np.ndarray]) -> OptimSpec:
    """The optimizer for the canonical `weights` of `model`; `ema` says whether an average of them is kept.

    Raises `ConfigError` for settings that speak of layers or of a classifier that the model does not have.
    """
    trained = {name: w for name, w in weights.items() if not is_buffer(name)}
    head = groups.head(trained, model)
    if not head and (settings.head_lr_mult != 1 or settings.freeze_epochs):
        key = "freeze_epochs" if settings.freeze_epochs else "head_lr_mult"
        raise ConfigError(f"optim.{key}: model {model.name} has no classifier of its own; leave the setting out")
    return OptimSpec(
        settings.name,
        ema=ema,
        multipliers=multipliers(settings, model, trained),
        matrices=groups.matrices(trained, model) if settings.name == "muon" else frozenset(),
        head=head,
        clip_value=settings.clip_value,
        clip_factor=settings.clip_factor,
        **settings.options(),
    )


def multipliers(settings: Optim, model: ModelSpec, weights: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """(learning rate, weight decay) multipliers of each trained parameter."""
    rates, head = groups.layer_rates(weights, model, settings.layer_decay), groups.head(weights, model)
    return {
        name: (
            rates.get(name, 1.0) * (settings.head_lr_mult if name in head else 1.0),
            0.0 if groups.undecayed(name, w) else 1.0,
        )
        for name, w in weights.items()
        if not is_buffer(name)
    }


def memory(settings: Train, micro_batch: int = 0) -> MemorySpec:
    """How the update saves memory; a `micro_batch` that was found by trying goes before that of the settings."""
    wished = settings.micro_batch if isinstance(settings.micro_batch, int) else 0
    return MemorySpec(micro_batch or wished, settings.checkpoint_gradients)
