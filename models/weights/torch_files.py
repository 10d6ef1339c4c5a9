"""What only torch and timm can read: pickled checkpoints, the .npz of JAX ViTs, and the names that timm maps.

Imported on use: a safetensors file under timm's names never needs it. Pickles are read with `weights_only`, so that no
code in them is run.
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.data import ImageNetInfo

from config.errors import WeightsError
from models.families import FAMILIES
from models.registry import ModelSpec, modules
from models.weights.files import Weights

# Plain data in the checkpoints of training scripts, beside their tensors: settings, scores, paths.
_PLAIN = [
    argparse.Namespace,
    type(np.float64(0)).__reduce__(np.float64(0))[0],  # numpy's own function that makes a scalar
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
    pathlib.PosixPath,
]
# timm's EMA entries before the live ones, in the order of timm's `load_state_dict`.
_EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_LIVE = ("state_dict", "model", "model_state_dict", "module", "net", "teacher", "student")


def read_pickle(path: Path, ema: bool = True) -> tuple[Weights, dict[str, Any], list[str]]:
    """The tensors of a .pth, .pt, .bin, .ckpt or .tar file, its other entries, and which weights were taken.

    Of a checkpoint with averaged and live weights, `ema` chooses. Raises `WeightsError` for a damaged file and for one
    that holds more than tensors and plain data.
    """
    try:
        with torch.serialization.safe_globals(_PLAIN):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        text = str(error).split("WeightsUnpickler error: ")[-1].strip().split("\n")[0]
        raise WeightsError(
            f"{path}: cannot be read as tensors and plain data alone ({text}); where you trust it, load it and save "
            "its state_dict as .safetensors"
        ) from error
    if not isinstance(held, Mapping):
        raise WeightsError(f"{path}: holds a {type(held).__name__}, no state_dict; save its state_dict")
    keys = [k for k in (*_EMA, *_LIVE) if isinstance(held.get(k), Mapping) and _tensors(held[k])]
    averaged, live = [k for k in keys if k in _EMA], [k for k in keys if k in _LIVE]
    order = [*averaged, *live] if ema else [*live, *averaged]
    notes = []
    if order:
        other = (averaged if order[0] in live else live)[:1]
        setting = f", not {other[0]} (weights_ema: {str(ema).lower()})" if other else ""
        notes.append(f"{path.name}: took {order[0]}{setting}")
    tensors = _tensors(held[order[0]] if order else held)
    facts = {k: v for k, v in held.items() if isinstance(v, str)}
    return {n: np.ascontiguousarray(t.detach().float().numpy()) for n, t in tensors.items()}, facts, notes


def _tensors(held: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    return {str(n): t for n, t in held.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}


def read_jax(path: Path, spec: ModelSpec) -> Weights:
    """The weights of a ViT's original .npz, by timm's own loader; `WeightsError` where it does not fit `spec`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            head = next((file[n].shape[0] for n in file.files if n.endswith("head/bias")), 0)
        model = timm.create_model(spec.arch, num_classes=head)
        model.load_pretrained(str(path))
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, AssertionError) as error:
        text = str(error).split("\n")[0]
        raise WeightsError(f"{path}: is no JAX ViT of {spec.arch} that timm reads ({text})") from error
    return {n: t.detach().numpy().copy() for n, t in model.state_dict().items() if not n.endswith("tracked")}


def missing(weights: Mapping[str, NDArray[np.float32]], spec: ModelSpec) -> list[str]:
    """The names that timm's network of `spec` has and `weights` have not, the classifier's aside."""
    heads = modules(spec.classifier)
    return [
        name
        for name in _network(spec).state_dict()
        if name not in weights and not name.endswith("tracked") and name.rpartition(".")[0] not in heads
    ]


def by_timm(weights: Mapping[str, NDArray[np.float32]], spec: ModelSpec) -> Weights | None:
    """`weights` mapped by timm's filter of the architecture's module; None where it has none or does not know them.

    Position tables come out at `spec`'s image size, as timm makes them.
    """
    module = importlib.import_module(f"timm.models.{FAMILIES[spec.family].timm_module}")
    mapping = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    if mapping is None:
        return None
    tensors = {n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in weights.items()}
    try:
        mapped = mapping(tensors) if mapping.__name__ == "_filter_fn" else mapping(tensors, _network(spec))
    except (KeyError, RuntimeError, AttributeError, AssertionError, ValueError):
        return None
    return {n: t.detach().float().numpy().copy() for n, t in mapped.items() if isinstance(t, torch.Tensor)}


def imagenet_names(count: int) -> list[str]:
    """timm's names of the ImageNet set with `count` classes, in the order of the logits; none for another number."""
    sets = {1000: "1k", 11221: "21k-miil", 11821: "12k", 21841: "22k", 21842: "22k-ms", 21843: "21k-goog"}
    if count not in sets:
        return []
    facts = ImageNetInfo(f"imagenet-{sets[count]}")
    return [facts.index_to_description(i) for i in range(count)]


def _network(spec: ModelSpec) -> torch.nn.Module:
    sized = {"img_size": spec.preprocessing.size} if FAMILIES[spec.family].takes_img_size else {}
    with torch.device("meta"):
        return timm.create_model(spec.arch, num_classes=spec.num_classes, **sized)
