"""Pretrained networks as Tandem checkpoints, without training: by name, weights file, hub folder or repository.

A checkpoint made for one command lies in the cache folder; `python -m models save` writes one to keep.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from config.errors import ConfigError, WeightsError
from config.places import atomic_folder, cache_folder
from config.text import counted
from models import limits, manifest, registry
from models.card import CARD_KEY, Card, Fit
from models.registry import ModelSpec
from models.weights import files, hub, loading
from models.weights import source as weights_source

# timm's crop modes as `Preprocessing.fit`.
_FITS: dict[str, Fit] = {"center": "crop", "squash": "squash", "border": "letterbox"}
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".npz", hub.INDEX)


def is_source(text: str) -> bool:
    """Whether `text` names pretrained weights: a model's name, hf:USER/NAME, a weights file or a hub folder."""
    path = Path(text)
    if path.is_dir():
        return (path / "config.json").is_file() and not (path / manifest.NAME).exists()
    if path.exists():
        return path.name.endswith(_SUFFIXES)
    return text.startswith(hub.PREFIXES) or _known(text)


def stem(text: str) -> str:
    """What artefacts of this source are called: the model's, the file's or the repository's name."""
    name = text.partition(":")[2] if text.startswith(hub.PREFIXES) else text
    last = name.rstrip("/").rpartition("/")[2]
    return next((last.removesuffix(s) for s in _SUFFIXES if last.endswith(s)), last)


def checkpoint(text: str) -> Path:
    """A checkpoint folder of the source `text` in the cache folder, made where it is not there yet.

    What was recognised is printed on standard error. Raises `WeightsError` or `ConfigError`.
    """
    path = _file(text)
    named = path / loading.MODEL_FILE if path.is_dir() else path
    facts = named.stat() if named.exists() else path.stat()
    key = hashlib.blake2b(f"{text}|{path.resolve()}|{facts.st_mtime_ns}|{facts.st_size}".encode(), digest_size=8)
    folder = cache_folder() / "pretrained" / f"{stem(text)}-{key.hexdigest()}"
    if not (folder / manifest.NAME).is_file():
        for note in save(text, folder, overwrite=True):
            print(note, file=sys.stderr)
    return folder


def save(
    text: str,
    out: Path,
    source: str | None = None,
    classes: Sequence[str] = (),
    image_size: int | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write the Tandem checkpoint `out` of a model's name, a file or a repository; what was recognised, in sentences.

    `source` gives the weights of the model `text`, as `weights` of a run does; `classes` names the columns of the
    logits (default: the file's own, or ImageNet's). Raises `WeightsError` or `ConfigError`.
    """
    if out.exists() and not overwrite:
        raise ConfigError(f"{out}: is there already; name a new folder")
    path = _file(source or text)
    named = registry.get(text, image_size=image_size) if source or _known(text) else None
    file = weights_source.open_file(path, True, named)
    spec = named or _spec(file, stem(text), path, image_size)
    weights_source.same_architecture(spec, file, path)
    if pool := weights_source.pooling(spec, file, path):
        spec = registry.get(spec.name, image_size=image_size, global_pool=pool)
    weights, notes = weights_source.canonical(file, spec, path)
    classifier = weights.get(f"{registry.modules(spec.classifier)[0]}.weight") if spec.classifier else None
    if classifier is None:
        raise WeightsError(f"{path}: the weights of {spec.name} have no classifier; train one: --weights {path}")
    count = int(classifier.shape[0])
    names, remarks = _names(classes or file.labels, count, path)
    spec = replace(_with_config(spec, file.preprocessing, image_size), num_classes=count)
    limits.check_size(spec, spec.preprocessing.size, "--image_size")
    fitted, changed = loading.fit(weights, spec)
    card = Card(spec.name, names, spec.preprocessing, dict(spec.options))
    with atomic_folder(out) as folder:
        files.write(folder / loading.MODEL_FILE, fitted, {CARD_KEY: card.to_json()})
        manifest.write(folder)
    return [*file.notes, *notes, *changed, *remarks]


def _known(name: str) -> bool:
    try:
        registry.get(name)
    except ConfigError:
        return False
    return True


def _file(text: str) -> Path:
    if text.startswith(hub.PREFIXES):
        return hub.repository(text)
    path = Path(text).expanduser()
    if path.exists():
        return path
    if text in ("pretrained", "pip", "none"):
        raise ConfigError(f"weights {text}: is the default of a model's name; name a file or hf:USER/NAME")
    if not _known(text):
        near = difflib.get_close_matches(text, registry.names(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise WeightsError(f"{text}: is no model's name and no weights file{hint}")
    spec = registry.get(text)
    return hub.package_file(spec) if hub.packaged(spec) else hub.pretrained_file(spec)


def _spec(file: weights_source.File, name: str, path: Path, image_size: int | None) -> ModelSpec:
    tag = str(file.preprocessing.get("tag", ""))
    for candidate in (f"{file.arch}.{tag}" if tag else "", file.arch, name):
        if candidate and _known(candidate):
            return registry.get(candidate, image_size=image_size)
    raise WeightsError(
        f"{path}: does not say its architecture; make a checkpoint of it: "
        f"python -m models save MODEL OUT --weights {path}"
    )


def _names(listed: Sequence[str], count: int, path: Path) -> tuple[tuple[str, ...], list[str]]:
    """One name per class: the given ones, else ImageNet's, else numbers; equal names get their number."""
    if listed and len(listed) != count:
        raise ConfigError(f"{path}: has {counted(count, 'class')}, given: {counted(len(listed), 'name')}")
    names = list(listed) or _imagenet(count)
    if not names:
        return tuple(map(str, range(count))), [f"{path.name}: says no class names: they are 0 to {count - 1}"]
    twice = {name for name, times in Counter(names).items() if times > 1}
    return tuple(f"{name} ({i})" if name in twice else name for i, name in enumerate(names)), []


def _imagenet(count: int) -> list[str]:
    if count == 1000:
        return list(json.loads((registry.TABLES / "imagenet_1k.json").read_text(encoding="utf-8")))
    if not weights_source.timm_installed():
        return []
    from models.weights import torch_files

    return torch_files.imagenet_names(count)


def _with_config(spec: ModelSpec, config: Any, image_size: int | None) -> ModelSpec:
    """`spec` with the preprocessing that a hub folder's config.json says."""
    prep = spec.preprocessing
    size = image_size or int((config.get("input_size") or [0, 0, prep.size])[-1])
    try:
        stated = replace(
            prep,
            size=size,
            mean=tuple(config.get("mean", prep.mean)),
            std=tuple(config.get("std", prep.std)),
            interpolation="bilinear" if config.get("interpolation", prep.interpolation) == "bilinear" else "bicubic",
            crop_pct=float(config.get("crop_pct", prep.crop_pct)),
            fit=_FITS.get(config.get("crop_mode", ""), prep.fit),
        )
    except (TypeError, ValueError) as error:
        raise WeightsError(f"config.json: its pretrained_cfg is unreadable ({error})") from error
    return replace(spec, preprocessing=stated, options={**spec.options, "image_size": size})
