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
from config.text import nearest, shown
from config.yaml_file import Key, Layer

_KEY = "members"
# What one data set, one folder and one folds.csv for all of them rest on.
_SHARED: tuple[Key, ...] = (
    ("out",),
    ("resume",),
    ("resume_anyway",),
    ("folds",),
    ("data", "root"),
    ("data", "table"),
    ("data", "images"),
    ("data", "label_pattern"),
    ("data", "follow_links"),
    ("data", "id_column"),
    ("data", "target_column"),
    ("data", "on_bad_image"),
    ("data", "icc_to_srgb"),
    ("data", "on_bad_test_image"),
    ("data", "pixel_limit"),
    ("data", "audit"),
    ("data", "audit_actions"),
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
    entries, found = [Entry("", 1.0, list(layers))], list[str]()
    if not lists or lists[0] in (None, []):
        return entries, found
    if not isinstance(lists[0], list):
        where = layers[owner].where[(_KEY,)]
        return entries, [f"{_KEY}: found {shown(lists[0])} ({where}); expected a list of `- name: NAME`"]
    entries.clear()
    for i, values in enumerate(lists[0]):
        entry_layer = _part(layers[owner], i, values)
        keys, wrong = _keys(entry_layer, values)
        found += [*wrong, *_shared(entry_layer), *_repeated(entry_layer, keys.name, [entry.name for entry in entries])]
        entries.append(Entry(keys.name, keys.weight, [*layers[:owner], entry_layer, *layers[owner:]]))
    return entries, found


def choose(members: Sequence[Member], name: str) -> Settings:
    """The settings of the member that `--member` named, or of the nameless one.

    `ConfigError`, which lists the members, for another name or none.
    """
    check(members, name)
    settings = {member.name: member.settings for member in members}
    if name in settings:
        return settings[name]
    known = ", ".join(settings)
    raise ConfigError(
        f"member: not given, and there are several; choose one of {known} by --member NAME, or all by --mode full"
    )


def check(members: Sequence[Member], name: str) -> None:
    """`ConfigError` where `--member` names one that is not there; "" names none."""
    settings = {member.name: member.settings for member in members}
    if not name or name in settings:
        return
    message = f"member: found {shown(name)} (command line)"
    if "" in settings:
        raise ConfigError(f"{message}, but neither file nor recipe lists members; leave it out")
    raise ConfigError(f"{message}{nearest(name, list(settings))} there are {', '.join(settings)}")


def dump(members: Sequence[Member]) -> dict[str, Any]:
    """All settings as plain values: what all members share on top, the rest in `members`."""
    documents = [member.settings.model_dump(mode="json") for member in members]
    if not members[0].name:
        return documents[0]
    top: dict[str, Any] = {"name": documents[0]["name"]}
    for key in _SHARED:
        branch = top
        for segment in key[:-1]:
            branch = branch.setdefault(segment, {})
        branch[key[-1]] = _at(documents[0], key)
    entries = []
    for member, values in zip(members, documents, strict=True):
        del values["name"]
        for key in _SHARED:
            _pop(values, key)
        entries.append({"name": member.name, "weight": member.weight, **values})
    return {**top, _KEY: entries}


def _at(values: Any, key: Key) -> Any:
    for segment in key:
        values = values[segment]
    return values


def _part(owner: Layer, index: int, values: Any) -> Layer:
    """The layer of entry `index`; its place as a whole is that of its first key."""
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
    values_given = {key: layer.values.pop(key) for key in _EXPECTED if key in layer.values}
    try:
        return MemberKeys.model_validate(values_given), []
    except ValidationError as error:
        keys = {str(details["loc"][0]) for details in error.errors(include_url=False)}
        return nameless, [_fault(layer, key, values_given) for key in sorted(keys)]


def _fault(layer: Layer, key: str, values: dict[str, Any]) -> str:
    message = f"found {shown(values[key])}" if key in values else "not given"
    return f"{layer.prefix}{key}: {message} ({layer.where.get((key,), layer.where[()])}); expected {_EXPECTED[key]}"


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
