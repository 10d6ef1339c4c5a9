"""An ensemble and its YAML file: members, views, how they are averaged.

`fit` fits the weights, `infer.runner` runs the members, `postprocess` applies what follows the average.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from config.errors import ConfigError
from config.places import atomic_write
from config.sections import described
from config.text import shown
from ensemble import views
from ensemble.member import Member
from ensemble.options import RunOptions
from ensemble.weighting.average import Combine, Merge, default_merge

Multiplier = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Left out of the file where not used.
_OPTIONAL = ("merge", "adaptive", "tempered", "layers", "clip", "class_multipliers", "aliases")


class Ensemble(BaseModel):
    """Members, their views, how all are averaged, and how the average is postprocessed.

    `combine` is the weighted mean of probabilities, of logits, or of the classes' ranks over members; `merge` is how a
    member's views merge (see `merge`), where it is not given as `combine`, and for ranks by probabilities. A member's
    temperature divides the logits of each of its `views`, or of their `mean`. After the mixture's own `temperature`
    come the `layers`, a safetensors file (`ensemble.fitted_params`), and `clip`, the lowest probability.
    `class_multipliers` weigh the classes where a label is chosen, not the probabilities. `aliases` are groups of names
    of one class, which share its probability in a submission. `adaptive` is the margin under which an image gets all
    views and members where `--tta adaptive` asks for that (see `adaptive`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    combine: Combine = "probabilities"
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    views: tuple[str, ...] = ("original",)
    merge: Merge | None = None
    adaptive: float | None = Field(default=None, ge=0, le=1)
    members: tuple[Member, ...] = Field(min_length=1)
    tempered: Literal["views", "mean"] = "views"
    layers: Path | None = None
    clip: float = Field(default=0.0, ge=0, lt=1)
    class_multipliers: dict[str, Multiplier] = Field(default_factory=dict)
    aliases: tuple[tuple[str, ...], ...] = ()

    @field_validator("views")
    @classmethod
    def _known_views(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return views.expand(names)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _some_weight(self) -> Ensemble:
        if sum(member.weight for member in self.members) <= 0:
            raise ValueError("the weights of all members are 0")
        return self

    @property
    def view_merge(self) -> Merge:
        """How a member's views merge."""
        return self.merge or default_merge(self.combine)

    def alone(self, member: Member) -> Ensemble:
        """One member with all views, without what was fitted to the mixture."""
        return Ensemble(
            combine=self.combine, views=self.views, merge=self.merge, tempered=self.tempered, members=(member,)
        )


def with_views(ensemble: Ensemble, names: Sequence[str] | None, merge: str | None) -> Ensemble:
    """The ensemble with other views or presets, or another merge of views; None leaves them unchanged."""
    changed: dict[str, Any] = {} if names is None else {"views": views.expand(names)}
    if merge is not None and merge not in get_args(Merge):
        raise ConfigError(f"merge {merge!r} is not known; there are {', '.join(get_args(Merge))}")
    return ensemble.model_copy(update=changed | ({} if merge is None else {"merge": merge}))


def read(path: Path) -> Ensemble:
    """Read an ensemble's YAML file; member paths are relative to its folder.

    `ConfigError` names every fault of the file at once: unknown keys, ill-typed values, members that do not exist.
    """
    raw = _mapping(path)
    try:
        ensemble = Ensemble.model_validate(raw)
    except ValidationError as error:
        # A fault of a value also makes what contains it faulty: only the innermost ones are reported.
        places = [fault["loc"] for fault in error.errors()]
        faults = [
            fault
            for fault, loc in zip(error.errors(), places, strict=True)
            if not any(len(inner) > len(loc) and inner[: len(loc)] == loc for inner in places)
        ]
        raise ConfigError(f"{path}: {'; '.join(map(_fault, faults))}") from error
    members = tuple(m.model_copy(update={"path": path.parent / m.path}) for m in ensemble.members)
    missing = [str(member.path) for member in members if not member.path.exists()]
    if missing:
        raise ConfigError(f"{path}: names members that do not exist: {', '.join(missing)}")
    layers = path.parent / ensemble.layers if ensemble.layers else None
    if layers and not layers.is_file():
        raise ConfigError(f"{path}: its layers {layers} do not exist; keep that file beside it, or fit it again")
    return ensemble.model_copy(update={"members": members, "layers": layers})


def write(path: Path, ensemble: Ensemble) -> None:
    """Write the YAML file, member paths relative to its folder; `ConfigError` when it exists already."""
    raw = ensemble.model_dump(mode="json")
    used = ensemble.model_dump(exclude_defaults=True)
    raw = {key: value for key, value in raw.items() if key not in _OPTIONAL or key in used}
    if ensemble.layers:
        raw["layers"] = _relative(ensemble.layers, path)
    raw["members"] = [_entry(member, path) for member in ensemble.members]
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, yaml.safe_dump(raw, sort_keys=False))


def _entry(member: Member, file: Path) -> dict[str, Any]:
    """A member as in the file, without absent options."""
    entry = {**member.model_dump(mode="json"), "path": _relative(member.path, file), "options": member.options.given()}
    return {key: value for key, value in entry.items() if value or key not in ("runtime", "options")}


def _relative(target: Path, file: Path) -> str:
    return Path(os.path.relpath(target.absolute(), file.parent.absolute())).as_posix()


def refuse_existing(path: Path) -> None:
    """`ConfigError` when `path` exists, or is to lie below a file."""
    if path.exists():
        raise ConfigError(f"{path}: exists already and is not overwritten; give another name")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ConfigError(f"{path}: {above} is a file, not a folder; give another name")


def _mapping(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: is no ensemble file; it must be a mapping with the key `members`")
    return raw


def _fault(fault: ErrorDetails) -> str:
    """One of pydantic's findings as `where: what`, with the nearest key for an unknown one."""
    where = ".".join(str(segment) for segment in fault["loc"])
    if fault["type"] == "extra_forbidden":
        if fault["loc"][0] == "pairs":
            return "pairs: second heads for confused classes were removed; delete this key, or fit the ensemble again"
        models: dict[int, type[BaseModel]] = {1: Ensemble, 3: Member}
        keys = list(models.get(len(fault["loc"]), RunOptions).model_fields)
        near = difflib.get_close_matches(str(fault["loc"][-1]), keys, n=1)
        return f"{where}: unknown key; {f'did you mean {near[0]}?' if near else 'keys: ' + ', '.join(keys)}"
    if fault["type"] == "missing":
        return f"{where}: is missing"
    if fault["type"] == "value_error":
        text = fault["msg"].removeprefix("Value error, ")
        return f"{where}: {text}" if where else text
    expected = described.expected(Ensemble, fault["loc"]) + described.not_empty(fault)
    return f"{where}: found {shown(fault['input'])}; expected {expected}"
