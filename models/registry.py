"""From a name, as people write it, to a `ModelSpec`: architecture, preprocessing, pretrained weights, defaults.

The facts stand in `tables/*.json`, recorded from timm by `record_timm`, from mlx-image and the ports by `record_mlx`.
No framework is imported here.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from config.errors import ConfigError
from models.card import Card, Preprocessing
from models.families import FAMILIES

# mlx-image's own models, called `mlxim/NAME`: no family of timm's, and MLX's alone.
ZOO = "zoo"
TABLES = Path(__file__).parent / "tables"
Pool = Literal["", "avg", "max", "gem"]


@dataclass(frozen=True)
class ModelSpec:
    """One architecture with everything needed to build it on either engine and to feed it.

    `args` are timm's resolved constructor arguments; `hub_id` and `hub_classes` name the pretrained weights of `tag`.
    `hub_size` is what they were trained at, and the default; `test_size` what timm evaluates them at, where larger.
    `global_pool` "" keeps the architecture's own pooling.
    """

    arch: str
    tag: str
    family: str
    cls: str
    args: Mapping[str, Any]
    preprocessing: Preprocessing
    parameters: int
    hub_id: str = ""
    hub_filename: str = ""
    hub_classes: int = 0
    hub_size: int = 0
    test_size: int = 0
    license: str = ""
    classifier: str | tuple[str, ...] = ""
    first_conv: str | tuple[str, ...] = ""
    fixed_input_size: bool = False
    num_classes: int = 1000
    in_chans: int = 3
    global_pool: Pool = ""
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """timm's full name, `arch.tag`."""
        return f"{self.arch}.{self.tag}" if self.tag else self.arch


def get(name: str, **options: Any) -> ModelSpec:
    """The spec of `name`: an architecture, `arch.tag`, or an alias such as `convnext_base_384`.

    Options: `num_classes`, `in_chans`, `image_size`, `global_pool`, `drop_rate`, `drop_path_rate`.
    Raises `ConfigError` with the nearest names for an unknown one.
    """
    family, arch, tag = _resolve(name)
    row = _table(family)[arch]
    facts = row["tags"][tag]
    chosen = {k: v for k, v in options.items() if v is not None}
    size = chosen.pop("image_size", facts["size"])
    preprocessing = Preprocessing(
        size=size,
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        interpolation="bilinear" if facts["interpolation"] == "bilinear" else "bicubic",
        crop_pct=facts["crop_pct"],
        fit="squash" if facts.get("crop_mode") == "squash" else "crop",
        resampling="pillow",  # as timm and torchvision evaluate their weights
    )
    hub = str(facts.get("hf_hub_id", "timm/")) if facts.get("pretrained") else ""
    spec = ModelSpec(
        arch=arch,
        tag=tag,
        family=family,
        cls=row["class"],
        args=row["args"],
        preprocessing=preprocessing,
        parameters=row["parameters"],
        hub_id=f"{hub}{arch}.{tag}" if hub.endswith("/") else hub,
        hub_filename=facts.get("hf_hub_filename") or "model.safetensors",
        hub_classes=facts.get("num_classes", 0),
        hub_size=facts["size"],
        test_size=facts.get("test_size", 0),
        license=facts.get("license", ""),
        classifier=_names(facts.get("classifier", "")),
        first_conv=_names(facts.get("first_conv", "")),
        fixed_input_size=facts.get("fixed_input_size", False),
        options={k: v for k, v in {**chosen, "image_size": size}.items() if k != "num_classes"},
    )
    return replace(spec, **chosen)


def names(pattern: str = "*") -> list[str]:
    """All architectures, `arch` names, that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(_index(), pattern))


def members(family: str) -> list[str]:
    """The architectures of one family, `ZOO` or a key of `FAMILIES`."""
    return list(_table(family))


def engines(spec: ModelSpec) -> dict[str, str]:
    """Why an engine cannot build `spec`'s architecture, by engine's name; "" where it can. No framework is asked."""
    torch = "mlx-image's models are MLX's alone" if spec.family == ZOO else ""
    return {"torch": torch, "mlx": _table("mlx_refused").get(spec.arch, "")}


def tags(arch: str) -> list[str]:
    """The tags of an architecture, timm's default first."""
    return list(_table(_index()[arch])[arch]["tags"])


def timm_args(spec: ModelSpec) -> dict[str, Any]:
    """The arguments with which timm's entry point builds `spec`: those that differ from the registry's row of its
    architecture, the image size of networks that are fixed to one, and the pooling."""
    usual = get(spec.name).args
    args = {key: value for key, value in spec.args.items() if key not in usual or usual[key] != value}
    if FAMILIES[spec.family].takes_img_size:
        args["img_size"] = spec.preprocessing.size
    if spec.global_pool:
        args["global_pool"] = spec.global_pool
    return args


def modules(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """The modules that a spec's `classifier` or `first_conv` names: one, several, or none."""
    return tuple(n for n in ((names,) if isinstance(names, str) else names) if n)


def _resolve(name: str) -> tuple[str, str, str]:
    index = _index()
    arch, dot, tag = name.removeprefix("timm/").partition(".")
    if arch in index:
        table = _table(index[arch])[arch]["tags"]
        if not dot:
            return index[arch], arch, next(iter(table))
        if tag in table:
            return index[arch], arch, tag
        raise ConfigError(f"model {name!r}: {arch} has no tag {tag!r}; its tags: {', '.join(t for t in table if t)}")
    stem, _, size = arch.rpartition("_")
    if stem in index and size.isdigit() and not dot:
        table = _table(index[stem])[stem]["tags"]
        fitting = [t for t, facts in table.items() if facts["size"] == int(size)]
        if fitting:
            default = next(iter(table))
            return index[stem], stem, next((t for t in fitting if t.startswith(default)), fitting[0])
    near = difflib.get_close_matches(arch, index, n=3, cutoff=0.6)
    hint = f"; did you mean {', '.join(near)}?" if near else ";"
    raise ConfigError(f"model {name!r} is not known{hint} `python -m models list` shows all")


def _names(value: str | list[str]) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else tuple(value)


@functools.cache
def _table(family: str) -> dict[str, Any]:
    path = TABLES / f"{family}.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


@functools.cache
def _index() -> dict[str, str]:
    return {arch: family for family in (*FAMILIES, ZOO) for arch in _table(family)}


def of_card(card: Card, source: str) -> ModelSpec:
    """The architecture that a card describes; its preprocessing wins over the registry's."""
    try:
        spec = get(card.model, num_classes=len(card.class_names), **card.model_options)
    except TypeError as error:
        raise ConfigError(f"{source}: its card has unknown model options ({error}); update Tandem") from error
    return replace(spec, preprocessing=card.preprocessing)
