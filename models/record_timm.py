"""Writes `models/tables/*.json` from the installed timm: `python -m models.record_timm [FAMILY ...]`.

The tables let the MLX side know every architecture's resolved constructor arguments and every pretrained tag's
preprocessing without timm, which needs torch. A test compares the tables with the installed timm.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import json
import sys
from typing import Any
from unittest import mock

import timm
import torch
from timm.models import get_pretrained_cfg, is_model, list_modules, list_pretrained

from models.families import FAMILIES
from models.registry import TABLES
from models.weights.torch_files import imagenet_names

_NOT_ARCHITECTURE = {
    "pretrained_filter_fn",
    "feature_cfg",
    "features_only",
    "pretrained_strict",
    "kwargs_filter",
    "pretrained_custom_load",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
}
_CFG_KEYS = (
    "hf_hub_id",
    "hf_hub_filename",
    "license",
    "fixed_input_size",
    "first_conv",
    "classifier",
    "num_classes",
)


class _Recorded(BaseException):
    """Carries the arguments out of timm's entry point, past any `except Exception`."""


def constructor(arch: str) -> tuple[str, dict[str, Any]]:
    """The class name and resolved constructor arguments that timm would build `arch` with, as plain JSON values."""
    entry = timm.models.model_entrypoint(arch)
    module = importlib.import_module(entry.__module__)

    def record(cls: type, _variant: str, _pretrained: bool, **kwargs: Any) -> None:
        arguments = {
            k: v for k, v in kwargs.items() if k not in _NOT_ARCHITECTURE and (v is not None or _says_none(cls, k))
        }
        raise _Recorded(cls.__name__, {k: plain(v) for k, v in arguments.items()})

    try:
        with mock.patch.object(module, "build_model_with_cfg", record):
            entry()
    except _Recorded as found:
        return found.args[0], found.args[1]
    raise RuntimeError(f"{arch}: timm built it without build_model_with_cfg")


def _says_none(cls: type, argument: str) -> bool:
    """Whether None is another value than the argument's default: ConvNeXt V2's `ls_init_value`, for one."""
    taken = inspect.signature(cls).parameters
    return argument in taken and taken[argument].default is not None


def plain(value: Any) -> Any:
    """A constructor argument as JSON: classes and functions by name, partials as `[name, keywords]`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, functools.partial):
        return {"name": plain(value.func), **{k: plain(v) for k, v in value.keywords.items()}}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value.__name__


def entry(arch: str) -> dict[str, Any]:
    """The table row of one architecture: class, arguments, parameter count, and its tags in timm's order."""
    cls, args = constructor(arch)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in timm.create_model(arch).parameters())
    pretrained = set(list_pretrained(f"{arch}.*")) | set(list_pretrained(arch))
    module = importlib.import_module(timm.models.model_entrypoint(arch).__module__)
    names = [f"{arch}.{tag}" if tag else arch for tag in module.default_cfgs[arch].tags]
    return {
        "class": cls,
        "args": args,
        "parameters": parameters,
        "tags": {name.partition(".")[2]: _tag(name, name in pretrained) for name in names},
    }


def _tag(name: str, pretrained: bool) -> dict[str, Any]:
    cfg = get_pretrained_cfg(name)
    row = {
        "size": cfg.input_size[1],
        "test_size": cfg.test_input_size[1] if cfg.test_input_size else None,
        "mean": list(cfg.mean),
        "std": list(cfg.std),
        "interpolation": cfg.interpolation,
        "crop_pct": cfg.crop_pct,
        "crop_mode": cfg.crop_mode,
        "pretrained": pretrained,
        **{key: getattr(cfg, key) for key in _CFG_KEYS},
    }
    return {key: value for key, value in row.items() if value not in (None, False)}


def family(name: str) -> dict[str, Any]:
    """All rows of one family (a timm module)."""
    archs = [a for a in timm.list_models(module=FAMILIES[name].timm_module) if is_model(a)]
    return {arch: entry(arch) for arch in sorted(archs)}


def main() -> None:
    """Write one table a family, of all or those named, and the names and synsets of ImageNet's classes."""
    TABLES.mkdir(exist_ok=True)
    synsets = timm.data.ImageNetInfo("imagenet-1k").label_names()
    (TABLES / "imagenet_1k_synsets.json").write_text(json.dumps(synsets, indent=0) + "\n")
    (TABLES / "imagenet_1k.json").write_text(json.dumps(imagenet_names(1000), indent=0, ensure_ascii=False) + "\n")
    modules = set(list_modules())
    for name in sys.argv[1:] or FAMILIES:
        record = FAMILIES[name]
        if record.timm_module not in modules:
            raise SystemExit(f"timm {timm.__version__} has no module {record.timm_module}")
        rows = family(name)
        lines = ",\n".join(f"{json.dumps(arch)}: {json.dumps(row)}" for arch, row in rows.items())
        (TABLES / f"{name}.json").write_text("{\n" + lines + "\n}\n")
        print(f"{name}: {len(rows)} architectures, {sum(len(r['tags']) for r in rows.values())} tags")


if __name__ == "__main__":
    main()
