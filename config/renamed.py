"""Settings that earlier versions had under other names; `program.removed_flags` has those of commands.

What people write is refused with the new name; the files of runs and checkpoints, which a program wrote, are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from config.yaml_file import Key, Layer, put

# Old dotted path -> new dotted path.
SETTINGS = {
    "optim.head_lr": "optim.head_lr_mult",
    "folds.kind": "folds.strategy",
    "folds.count": "folds.n_splits",
    "data.fit": "data.resize_mode",
    "stopping.corrupted": "stopping.robust_weight",
    "augment.least_area": "augment.min_scale",
    "watchdog.max_returns": "watchdog.max_rollbacks",
    "class_imbalance.classes": "sampling.oversample_classes",
    "class_imbalance.max_samples": "sampling.oversample_to",
}
# Old switch of a block (true, false, null) under `augment` -> operation in `augment.ops`.
_SAME_NAME = (
    *("rotate90", "bleed_through", "erosion", "dilation", "shadow", "affine", "rotate", "rotate_any", "shear"),
    *("perspective", "brightness", "contrast", "saturation", "hue", "gamma", "posterize", "solarize", "jpeg"),
)
SWITCHES = {name: name for name in _SAME_NAME} | {
    "greyscale": "grayscale",
    "blur": "gaussian_blur",
    "noise": "gaussian_noise",
    "erase": "random_erasing",
}
# Dotted path -> old value -> new value.
VALUES = {"schedule.name": {"restarts": "cosine_restarts", "stable_decay": "wsd"}}
# Dotted path -> why it is gone.
REMOVED = {"ensemble.pairs": "second heads for confused classes were removed"}
# What a run meant before there was such a setting.
OLD_DEFAULTS = {"data.resampling": "area", "model": "convnext_base"}


def message(path: str, where: str) -> str | None:
    """The one line for a setting, or a whole section, that was renamed or removed; None for any other."""
    moved = [f"{old} is now {new}" for old, new in SETTINGS.items() if old == path or old.startswith(f"{path}.")]
    if moved:
        return f"{' and '.join(moved)} ({where})"
    section, _, name = path.partition(".")
    if section == "augment" and name in SWITCHES:
        return f"{path} is now augment.ops: {{{SWITCHES[name]}: ...}} ({where})"
    return f"{path}: {REMOVED[path]} ({where}); leave it out" if path in REMOVED else None


def new_value(path: str, value: object) -> str | None:
    """The new name of an old value of a setting; None where it is no old value."""
    return VALUES.get(path, {}).get(value) if isinstance(value, str) else None


def upgrade(layer: Layer) -> Layer:
    """A layer that a run wrote, under today's names."""
    where = {_renamed(key): origin for key, origin in layer.where.items()}
    values = upgrade_values(layer.values)
    if isinstance(values.get("members"), list):
        values["members"] = [upgrade_values(v) if isinstance(v, dict) else v for v in values["members"]]
    return Layer(values, where, layer.prefix)


def upgrade_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings that a run or a checkpoint wrote, under today's names and without what is gone."""
    upgraded: dict[str, Any] = {}
    for section, inner in values.items():
        entries = {(section, name): value for name, value in inner.items()} if isinstance(inner, dict) else None
        for key, value in (entries if entries is not None else {(section,): inner}).items():
            if ".".join(key) not in REMOVED and not (_is_switch(key) and value is None):
                put(upgraded, _renamed(key), _upgraded_value(key, value))
        if entries == {}:
            upgraded.setdefault(section, {})
    return upgraded


def _upgraded_value(key: Key, value: Any) -> Any:
    path = ".".join(_renamed(key))
    if path != "tune.space" or not isinstance(value, dict):
        return new_value(path, value) or value
    space = {}
    for name, search in value.items():
        if isinstance(search, dict) and isinstance(search.get("choices"), list):
            search = search | {"choices": [new_value(name, choice) or choice for choice in search["choices"]]}
        space[".".join(_renamed(tuple(name.split("."))))] = search
    return space


def _is_switch(key: Key) -> bool:
    return len(key) > 1 and key[0] == "augment" and key[1] in SWITCHES


def _renamed(key: Key) -> Key:
    if _is_switch(key):
        return ("augment", "ops", SWITCHES[key[1]], *key[2:])
    for length in (2, 1):
        path = ".".join(key[:length])
        if path in SETTINGS:
            return (*SETTINGS[path].split("."), *key[length:])
    return key
