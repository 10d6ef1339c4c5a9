"""Writes what MLX can run into `models/tables`: `python -m models.record_mlx`.

`zoo.json` holds mlx-image's own models; `mlx_refused.json` the architectures of timm's tables that the ports refuse,
each with the reason. Tests compare both with what is installed.
"""

from __future__ import annotations

import inspect
import json
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

import ports
from config.errors import ConfigError
from models import registry
from ports import zoo

CLASSES = 1000


def main() -> None:
    """Write both tables."""
    for name, rows in (("zoo", zoo_rows()), ("mlx_refused", refusals())):
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
        (registry.TABLES / f"{name}.json").write_text("{\n" + lines + "\n}\n")
        print(f"{name}: {len(rows)} architectures")


def refusals() -> dict[str, str]:
    """Architecture to the reason why its port does not build it, such as `MLX has no port of pruned=true`."""
    reasons = {}
    for arch in (arch for family in registry.FAMILIES for arch in registry.members(family)):
        try:
            ports.create(registry.get(arch))
        except ConfigError as error:
            reasons[arch] = str(error).partition(": ")[2].rpartition(";")[0]
    return reasons


def zoo_rows() -> dict[str, Any]:
    """The table of mlx-image's models; names that differ after a dot are tags of one architecture."""
    rows: dict[str, Any] = {}
    for name in zoo.entries():
        arch, _, tag = name.partition(".")
        row, facts = _zoo_row(name)
        rows.setdefault(zoo.PREFIX + arch, {**row, "tags": {}})["tags"][tag] = facts
    return rows


def _zoo_row(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    make, config = zoo.entries()[name]
    model = make()
    classes = inspect.signature(make).parameters["num_classes"].default
    classifier, features = _classifier(model, classes)
    kinds = [(type(m).__name__, m) for m in model.modules()]
    row = {
        "class": type(model).__name__,
        "args": {
            "features": features,
            "dropout": any(kind == "Dropout" and m._p_1 < 1 for kind, m in kinds),
            "drop_path": any(kind == "StochasticDepth" and m.p > 0 for kind, m in kinds),
        },
        "parameters": _count(model),
    }
    return row, _facts(name, config, classifier, fixed=hasattr(model, "image_size"))


def _classifier(model: Any, classes: int) -> tuple[str, int]:
    """Its path and the features it takes; some constructors ignore their `num_classes`, and one ViT has none."""
    linear = ((path, m.weight.shape) for path, m in model.named_modules() if isinstance(m, nn.Linear))
    layers = [(path, inputs) for path, (outputs, inputs) in linear if outputs in (classes, CLASSES)]
    return layers[0] if layers else ("heads", model.hidden_dim)


def _facts(name: str, config: Any, classifier: str, fixed: bool) -> dict[str, Any]:
    transform = config.transform
    facts = {
        "size": transform.img_size,
        "mean": list(transform.mean),
        "std": list(transform.std),
        "interpolation": transform.interpolation,
        "crop_pct": transform.crop_pct,
        "pretrained": True,
        "hf_hub_id": config.weights.repo_id,
        "hf_hub_filename": config.weights.filename,
        "classifier": classifier,
        "fixed_input_size": fixed,
        # DINO's are features without a classifier.
        "num_classes": 0 if "dino" in name else CLASSES,
    }
    return {key: value for key, value in facts.items() if value is not False}


def _count(model: nn.Module) -> int:
    trained = tree_flatten(model.trainable_parameters())
    return sum(value.size for path, value in trained if path.rpartition(".")[2] not in zoo.CONSTANTS)


if __name__ == "__main__":
    main()
