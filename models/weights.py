"""Weights files: reading, writing, finding (hub or local) and fitting them to a spec. Canonical arrays only.

No framework is imported. The engine that takes the weights over has the last word on names and shapes, through
`check`; position tables of another image size are `models.resample`'s.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from config.errors import WeightsError
from models import manifest, registry
from models.card import CARD_KEY, Card
from models.registry import ModelSpec
from models.resample import resample

Weights = dict[str, NDArray[np.float32]]

HUB_FILE = "model.safetensors"
MODEL_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"
# What timm recomputes from the architecture, or keeps for itself: never part of the canonical weights.
_DERIVED = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask")
# The standard deviation of a fresh classifier: small, so that training starts from nearly equal logits.
_HEAD_STD = 0.02
_GEM_POWER = 3.0


def read(path: Path) -> tuple[Weights, dict[str, str]]:
    """The canonical float32 weights of a safetensors file, and its metadata.

    fp16, bf16 and fp64 entries become float32; entries that only timm keeps (`num_batches_tracked`, ...) are left
    out. Raises `WeightsError` when the file is missing, truncated, damaged, or not safetensors.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
            kept = [n for n in file.keys() if n.rpartition(".")[2] not in _DERIVED]  # noqa: SIM118
            half = any(file.get_slice(n).get_dtype() == "BF16" for n in kept)
            weights = {} if half else {n: _float32(n, file.get_tensor(n)) for n in kept}
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file; name a .safetensors file or a checkpoint folder") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: damaged or no safetensors file ({error}); download or copy it again, or convert a .pth with timm"
        ) from error
    except TypeError as error:
        raise WeightsError(f"{path}: {error}") from error
    return (dict(_read_half(path, kept)) if half else weights), metadata


def write(path: Path, weights: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str]) -> None:
    """Write float32 weights as safetensors beside `path`, then rename: the file is whole or absent."""
    arrays = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()}
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        safetensors.numpy.save_file(arrays, beside, metadata=dict(metadata))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def resolve(spec: ModelSpec, source: str | Path) -> Weights | None:
    """The weights that `source` names: "pretrained" (the hub's), "none" (`None`), or a local path.

    A path is a timm safetensors file or a Tandem checkpoint folder, whose EMA weights are taken when it has them.
    Raises `WeightsError`, or `CheckpointError` for a damaged folder.
    """
    if source == "none":
        return None
    if source == "pretrained":
        return _canonical(read(_from_hub(spec))[0], spec)
    path = Path(source).expanduser()
    if path.is_dir():
        manifest.verify(path)
        ema = path / EMA_FILE
        path = ema if ema.exists() else path / MODEL_FILE
    weights, metadata = read(path)
    _same_architecture(spec, metadata, path)
    return weights if CARD_KEY in metadata else _canonical(weights, spec)


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
            f"resampled {len(changed)} position tables ({changed[0]}, ...) to {spec.preprocessing.size} pixels"
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
    found = [f"{len(names)} {kind}: {', '.join(names[:3])}" for kind, names in kinds if names]
    if found:
        raise WeightsError(
            f"{source}: does not fit the model ({'; '.join(found)}); name the model that these weights are of"
        )


def _float32(name: str, array: NDArray) -> NDArray[np.float32]:
    if array.dtype.kind != "f":
        raise TypeError(f"{name} is {array.dtype}, weights are floating point; is this a file of weights?")
    return array.astype(np.float32)


def _read_half(path: Path, kept: list[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    # NumPy has no bfloat16: its 16 bits are the upper half of a float32.
    for name, entry in safetensors.deserialize(path.read_bytes()):
        if name not in kept:
            continue
        if entry["dtype"] == "BF16":
            wide = np.frombuffer(entry["data"], dtype="<u2").astype(np.uint32) << np.uint32(16)
            yield name, wide.view(np.float32).reshape(entry["shape"])
        else:
            dtype = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}.get(entry["dtype"])
            if dtype is None:
                raise WeightsError(f"{path}: {name} is {entry['dtype']}, weights are floating point")
            yield name, np.frombuffer(entry["data"], dtype=dtype).reshape(entry["shape"]).astype(np.float32)


def _from_hub(spec: ModelSpec) -> Path:
    if not spec.hub_id:
        others = [t for t in registry.tags(spec.arch) if registry.get(f"{spec.arch}.{t}").hub_id]
        hint = f"take {spec.arch}.{others[0]}, " if others else ""
        raise WeightsError(f"model {spec.name}: has no pretrained weights; {hint}--weights PATH or --weights none")
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    name = spec.hub_filename or HUB_FILE
    cached = huggingface_hub.try_to_load_from_cache(spec.hub_id, name)
    try:
        path = Path(cached if isinstance(cached, str) else huggingface_hub.hf_hub_download(spec.hub_id, name))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        raise WeightsError(
            f"model {spec.name}: cannot get {name} of {spec.hub_id} from the Hugging Face hub "
            f"({type(error).__name__}); check the network, or name a local file with --weights PATH, "
            "or start fresh with --weights none"
        ) from error
    _verify_blob(path)
    return path


def _canonical(weights: Weights, spec: ModelSpec) -> Weights:
    """mlx-image's files hold convolutions in MLX's layout, OHWI, and nothing else that has four axes."""
    if spec.family != registry.ZOO:
        return weights
    return {n: np.ascontiguousarray(v.transpose(0, 3, 1, 2)) if v.ndim == 4 else v for n, v in weights.items()}


def _verify_blob(path: Path) -> None:
    # The hub's etag of a large file is its SHA-256, and the cache names the blob by the etag.
    etag = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", etag) and manifest.sha256(path) != etag:
        raise WeightsError(f"{path.resolve()}: its SHA-256 is not the hub's; delete this file, and it loads again")


def _same_architecture(spec: ModelSpec, metadata: Mapping[str, str], path: Path) -> None:
    if CARD_KEY not in metadata:
        return
    made_for = registry.get(Card.from_json(metadata[CARD_KEY], str(path)).model)
    if made_for.arch != spec.arch:
        raise WeightsError(f"{path}: weights of {made_for.arch}, not of {spec.arch}; use --model {made_for.arch}")


def _fit_first_conv(weights: Weights, spec: ModelSpec) -> list[str]:
    """timm's `adapt_input_conv`: one channel sums the three, others repeat them and keep the scale."""
    notes = []
    for module in _several(spec.first_conv):
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
    for module in _several(spec.classifier):
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
    head = _several(spec.classifier)[0].rpartition(".")[0] if spec.classifier else ""
    return f"{head}.global_pool.p" if head else "global_pool.p"


def _fresh(shape: tuple[int, int], seed: int, name: str) -> NDArray[np.float32]:
    key = np.frombuffer(hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=16).digest(), dtype="<u8")
    draw = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape)
    return (_HEAD_STD * np.clip(draw, -2, 2)).astype(np.float32)


def _several(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(n for n in ((names,) if isinstance(names, str) else names) if n)
