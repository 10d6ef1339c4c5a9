"""Several models in one recipe: `members:`, a list of entries with a name, a weight and settings of their own.

Here entries become layers and one member is chosen; validating the settings is in `load`. An entry's settings stand
over those of the file that lists it, and under those of a file that builds on that one and of the command line. A list
of a later file replaces that of its recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from config.errors import ConfigError
from config.schema import MemberKeys, Settings
from config.sections.base import NAME
from config.text import choices, shown
from config.yaml_file import Key, Layer, put, value_at

_KEY = "members"
# What one data set, one folder and one folds.csv for all of them rest on.
_SHARED_DATA = (
    *("root", "table", "images", "label_pattern", "follow_links", "id_column", "target_column", "on_bad_image"),
    *("icc_to_srgb", "on_bad_test_image", "pixel_limit", "audit", "audit_actions"),
)
_SHARED: tuple[Key, ...] = (
    *((name,) for name in ("out", "resume", "resume_anyway", "folds")),
    *(("data", name) for name in _SHARED_DATA),
)
_EXPECTED = {"name": NAME, "weight": "a number >= 0"}


@dataclass(frozen=True)
class Member:
    """One model of a recipe: its share in the ensemble is `weight` over the sum of all, its settings are complete."""

    name: str
    weight: float
    settings: Settings


@dataclass(frozen=True)
class Entry:
    """A member as it was read; `layers` are those of its settings, the first wins."""

    name: str
    weight: float
    layers: list[Layer]


def take(layers: Sequence[Layer]) -> tuple[list[Entry], list[str]]:
    """Take `members` out of all layers: the entries of the first list, and what is wrong with them but for settings.

    Where no layer has members there is one entry without a name.
    """
    owner = next((i for i, layer in enumerate(layers) if _KEY in layer.values), 0)
    lists = [layer.values.pop(_KEY) for layer in layers if _KEY in layer.values]
    nameless = [Entry("", 1.0, list(layers))]
    if not lists or lists[0] in (None, []):
        return nameless, []
    if not isinstance(lists[0], list):
        where = layers[owner].where[(_KEY,)]
        return nameless, [f"{_KEY}: found {shown(lists[0])} ({where}); expected a list of `- name: NAME`"]
    entries, faults = list[Entry](), list[str]()
    for i, values in enumerate(lists[0]):
        layer = _entry_layer(layers[owner], i, values)
        keys, wrong = _keys(layer, values)
        faults += [*wrong, *_shared(layer), *_repeated(layer, keys.name, [entry.name for entry in entries])]
        entries.append(Entry(keys.name, keys.weight, [*layers[:owner], layer, *layers[owner:]]))
    return entries, faults


def choose(members: Sequence[Member], name: str) -> Settings:
    """The settings of the member that `--member` named, or of the nameless one.

    `ConfigError`, which lists the members, for another name or none.
    """
    check(members, name)
    settings = {member.name: member.settings for member in members}
    if name in settings:
        return settings[name]
    raise ConfigError(
        f"member: not given, and there are several; choose one of {', '.join(settings)} by --member NAME, or all by "
        "--mode full"
    )


def check(members: Sequence[Member], name: str) -> None:
    """`ConfigError` where `--member` names one that is not there; "" names none."""
    known = [member.name for member in members]
    if not name or name in known:
        return
    message = f"member: found {shown(name)} (command line)"
    if "" in known:
        raise ConfigError(f"{message}, but neither file nor recipe lists members; leave it out")
    raise ConfigError(f"{message}{choices(name, known)}")


def dump(members: Sequence[Member]) -> dict[str, Any]:
    """All settings as plain values: what all members share on top, the rest in `members`."""
    documents = [member.settings.model_dump(mode="json") for member in members]
    if not members[0].name:
        return documents[0]
    top: dict[str, Any] = {"name": documents[0]["name"]}
    for key in _SHARED:
        put(top, key, value_at(documents[0], key))
    entries = []
    for member, values in zip(members, documents, strict=True):
        del values["name"]
        for key in _SHARED:
            _pop(values, key)
        entries.append({"name": member.name, "weight": member.weight, **values})
    return {**top, _KEY: entries}


def _entry_layer(owner: Layer, index: int, values: Any) -> Layer:
    """The layer of entry `index`; the entry stands where its first key does."""
    prefix = (_KEY, str(index))
    where = {key[2:]: where_of for key, where_of in owner.where.items() if key[:2] == prefix}
    where[()] = next(iter(where.values()), owner.where[(_KEY,)])
    return Layer(dict(values) if isinstance(values, dict) else {}, where, f"{_KEY}[{index}].")


def _keys(layer: Layer, values: Any) -> tuple[MemberKeys, list[str]]:
    """Name and weight, taken out of the layer of the entry `values`, and what is wrong with them."""
    nameless = MemberKeys.model_construct(name="")
    if not isinstance(values, dict):
        message = f"{layer.prefix.rstrip('.')}: found {shown(values)} ({layer.where[()]})"
        return nameless, [f"{message}; expected `name: NAME` with settings of its own"]
    keys = {key: layer.values.pop(key) for key in _EXPECTED if key in layer.values}
    try:
        return MemberKeys.model_validate(keys), []
    except ValidationError as error:
        faults = []
        for key in sorted({str(details["loc"][0]) for details in error.errors(include_url=False)}):
            message = f"found {shown(keys[key])}" if key in keys else "not given"
            where = layer.where.get((key,), layer.where[()])
            faults.append(f"{layer.prefix}{key}: {message} ({where}); expected {_EXPECTED[key]}")
        return nameless, faults


def _shared(entry: Layer) -> Iterator[str]:
    """The settings that no member can have for itself, taken out of an entry's layer."""
    for key in _SHARED:
        if _pop(entry.values, key):
            where = entry.where[key]
            yield f"{entry.prefix}{'.'.join(key)}: is the same for all members ({where}); write it above them"


def _repeated(entry: Layer, name: str, before: Sequence[str]) -> Iterator[str]:
    alike = [other.casefold() for other in before]  # a name is a folder's, and not all file systems tell A from a
    if name and name.casefold() in alike:
        other = f"{_KEY}[{alike.index(name.casefold())}]"
        yield f"{entry.prefix}name: found {name!r} ({entry.where[('name',)]}), which {other} has; give each its own"


def _pop(values: dict[str, Any], key: Key) -> bool:
    for segment in key[:-1]:
        if not isinstance(values.get(segment), dict):
            return False
        values[segment] = values = dict(values[segment])
    return values.pop(key[-1], values) is not values
