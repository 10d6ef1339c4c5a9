"""From what a user names to canonical weights: hub, package, file or folder of any of the known kinds."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config.errors import ConfigError, WeightsError
from config.text import counted
from models import manifest, registry
from models.card import CARD_KEY, Card
from models.registry import ModelSpec, Pool
from models.weights import files as weights_read
from models.weights import hub, renaming
from models.weights.files import DERIVED, Weights

MODEL_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"
_PICKLES = ("pytorch_model.bin", "model.pth", "model.pt")
# Arguments of timm's entry points that the settings, the weights or the preprocessing decide, or training alone uses.
_FREE_ARGS = ("num_classes", "in_chans", "img_size", "global_pool", "dynamic_img_size", "strict_img_size")
_WRAPPERS = re.compile(r"(?:module|_orig_mod|model|backbone|net|encoder)\.")


class File(NamedTuple):
    """What a file or folder holds, under its own names; `arch` and the rest where it says so itself.

    `preprocessing` is a hub folder's pretrained_cfg, `args` are those that timm's entry point built the network with.
    """

    weights: Weights
    notes: list[str]
    card: Card | None = None
    arch: str = ""
    labels: tuple[str, ...] = ()
    preprocessing: Mapping[str, object] = {}
    args: Mapping[str, object] = {}


def open_file(path: Path, ema: bool = True, spec: ModelSpec | None = None) -> File:
    """Read a weights file, a Tandem checkpoint, a hub folder or sharded weights. `spec` is needed for a JAX .npz alone.

    `ema` chooses the averaged weights where both are there. Raises `WeightsError` or `CheckpointError`.
    """
    if path.is_dir():
        return _folder(path, ema)
    if not path.exists():
        raise WeightsError(f"{path}: no such file; name a weights file, a hub folder or a checkpoint folder")
    if path.name.endswith(hub.INDEX):
        shards = [open_file(file) for file in hub.shards(path)]
        weights = {name: array for shard in shards for name, array in shard.weights.items()}
        return File(weights, [f"{path.name}: read {counted(len(shards), 'shard')}"])
    with path.open("rb") as file:
        start = file.read(2)
    if path.suffix == ".npz":
        if spec is None:
            raise WeightsError(f"{path}: does not say its architecture; name it: python -m models save MODEL OUT")
        _require_torch(path)
        from models.weights import torch_files

        return File(torch_files.read_jax(path, spec), [f"{path.name}: read as a JAX ViT by timm"])
    # A zip archive, or a pickle of the protocols that torch writes.
    if start == b"PK" or start in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return _pickle(path, ema)
    held, metadata = weights_read.read(path)
    card = Card.from_json(metadata[CARD_KEY], str(path)) if CARD_KEY in metadata else None
    return File(held, [], card, card.model if card else "", card.class_names if card else ())


def canonical(file: File, spec: ModelSpec, path: Path | str) -> tuple[Weights, list[str]]:
    """`file`'s weights under timm's names, and what was recognised in them.

    Prefixes of wrappers go first, then the names of other libraries (`models.weights.renaming`), then timm's own
    filters. Raises `WeightsError`, with what the file holds and what was wanted, where nothing is recognised.
    """
    if file.card is not None:
        return file.weights, []
    held = {n: v for n, v in file.weights.items() if n.rpartition(".")[2] not in DERIVED and v.dtype == np.float32}
    if spec.family == registry.ZOO:
        # mlx-image's files hold convolutions in MLX's layout, OHWI, and nothing else that has four axes.
        return {n: np.ascontiguousarray(v.transpose(0, 3, 1, 2)) if v.ndim == 4 else v for n, v in held.items()}, []
    name = Path(path).name
    translated = renaming.translate(held, spec)
    if translated is not None:
        return translated[0], [f"{name}: recognised {translated[1]}"]
    anchor = f"{registry.modules(spec.first_conv)[0]}.weight"
    prefix = renaming.prefix_of(held, anchor)
    notes: list[str] = []
    if prefix is None:
        held, prefix = _unwrapped(held)
    elif prefix:
        held = renaming.below(held, prefix, f"{registry.modules(spec.classifier)[0]}." if spec.classifier else "")
    if prefix:
        notes.append(f"{name}: took off the prefix {prefix}")
    mapped = _by_timm(held, spec)
    if mapped is not None:
        return mapped, [*notes, f"{name}: mapped by timm's own filter of {spec.family}"]
    if anchor not in held:
        some = ", ".join(list(file.weights)[:3]) or "nothing"
        raise WeightsError(
            f"{path}: its names are not recognised as {spec.arch}'s: it holds {len(file.weights)} entries ({some}, "
            f"...), wanted are timm's ({anchor}, ...); name the model that these weights are of"
        )
    return held, notes


def _unwrapped(held: Weights) -> tuple[Weights, str]:
    """Without the wrappers' prefixes that all names share."""
    prefix = ""
    while held and (wrapper := _WRAPPERS.match(next(iter(held)))) and all(n.startswith(wrapper[0]) for n in held):
        held, prefix = {n.removeprefix(wrapper[0]): v for n, v in held.items()}, prefix + wrapper[0]
    return held, prefix


def _by_timm(held: Weights, spec: ModelSpec) -> Weights | None:
    """timm's mapping where it makes more of the wanted names come true; None without timm, or where all are there."""
    if not timm_installed():
        return None
    from models.weights import torch_files

    before = torch_files.missing(held, spec)
    if not before:
        return None
    mapped = torch_files.by_timm(held, spec)
    return mapped if mapped is not None and len(torch_files.missing(mapped, spec)) < len(before) else None


def _folder(path: Path, ema: bool) -> File:
    if (path / manifest.NAME).is_file():
        manifest.verify(path)
        averaged = path / EMA_FILE
        return open_file(averaged if averaged.exists() and ema else path / MODEL_FILE)
    stated = _config(path)
    index = path / f"{MODEL_FILE}{hub.INDEX}"
    files = [path / MODEL_FILE, index, *(path / name for name in _PICKLES)]
    there = next((file for file in files if file.is_file()), None)
    if there is None:
        manifest.verify(path)  # says that this is no checkpoint
        raise WeightsError(f"{path}: holds no {MODEL_FILE}")
    held = open_file(there, ema)
    if held.card is not None:
        manifest.verify(path)  # a checkpoint that has lost its manifest
    return File(held.weights, held.notes, held.card, *stated)


def _config(path: Path) -> tuple[str, tuple[str, ...], dict[str, object], dict[str, object]]:
    """Architecture, class names, preprocessing and arguments of a hub folder's config.json, timm's or transformers'."""
    file = path / "config.json"
    if not file.is_file():
        return "", (), {}, {}
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        named = held.get("label_names") or [held["id2label"][k] for k in sorted(held.get("id2label", {}), key=int)]
        prep = held.get("pretrained_cfg") or {}
        args = dict(held.get("model_args") or {})
        return str(held.get("architecture", "")), tuple(map(str, named)), dict(prep), args
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file}: unreadable ({error}); download it again") from error


def _pickle(path: Path, ema: bool) -> File:
    _require_torch(path)
    from models.weights import torch_files

    held, facts, notes = torch_files.read_pickle(path, ema)
    if not held:
        raise WeightsError(f"{path}: holds no tensors; name a file with a state_dict")
    return File(held, notes, None, str(facts.get("arch", "")))


def timm_installed() -> bool:
    """Whether torch and timm can be imported; neither is."""
    try:
        return all(importlib.util.find_spec(name) is not None for name in ("torch", "timm"))
    except ModuleNotFoundError:
        return False


def _require_torch(path: Path) -> None:
    if not timm_installed():
        raise WeightsError(f'{path}: only torch reads it; pip install -e ".[torch]", or save it as .safetensors')


def same_architecture(spec: ModelSpec, file: File, path: Path | str) -> None:
    """`WeightsError` where the file says that it is of another architecture, or of one built with other arguments."""
    try:
        made_for = registry.get(file.arch).arch if file.arch else spec.arch
    except ConfigError:
        return
    if made_for != spec.arch:
        raise WeightsError(f"{path}: weights of {made_for}, not of {spec.arch}; use --model {made_for}")
    other = {k: v for k, v in file.args.items() if not (k in _FREE_ARGS or k.endswith("drop_rate")) and v is not None}
    for name, value in other.items():
        if spec.args.get(name) != value:
            raise WeightsError(f"{path}: its {spec.arch} was built with {name}={value!r}, which Tandem does not build")


def pooling(spec: ModelSpec, file: File, path: Path | str) -> Pool:
    """The pooling that the file says where it is not the architecture's own; `WeightsError` where none is like it."""
    usual = spec.args.get("global_pool", "token" if spec.family == "vit" else "avg")
    wanted = file.args.get("global_pool", usual)
    if wanted == usual:
        return ""
    if wanted not in ("avg", "max"):
        raise WeightsError(f"{path}: its {spec.arch} pools by {wanted!r}, which Tandem does not build")
    return wanted
