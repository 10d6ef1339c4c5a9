"""What is wrong with the settings, one line each: the path, what was found and where, what is expected or meant.

Texts only; who validates and raises is `load`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from config import renamed, usage
from config.errors import ConfigError
from config.schema import Settings
from config.sections import described
from config.sections.base import CHECK
from config.text import LONGEST, plain, short, shown
from config.yaml_file import Key, Layer, value_at

Errors = dict[Key, ErrorDetails]


def several(faults: Sequence[str]) -> ConfigError:
    """One error for all faults, a line each; a setting that another fault takes for misspelled is not missing too."""
    meant = {match[1] for fault in faults if (match := re.search(r"did you mean (\S+)\?", fault))}
    faults = [fault for fault in faults if fault.partition(": not given;")[0] not in meant]
    if len(faults) == 1:
        return ConfigError(faults[0])
    return ConfigError("\n  ".join([f"{len(faults)} faults in the settings:", *faults]))


def by_key(error: ValidationError, prefix: Key = ()) -> Errors:
    """The first error of each setting; an entry of a list and a branch of a union count as the setting.

    `prefix` is taken off the front of every location.
    """
    by_name: Errors = {}
    for details in error.errors(include_url=False):
        key = tuple(str(segment) for segment in details["loc"][len(prefix) :])
        key = next((key[:end] for end in range(1, len(key)) if ".".join(key[:end]) in usage.leaves()), key)
        by_name.setdefault(key, details)
    return by_name


def is_cross(details: ErrorDetails) -> bool:
    """Whether an error compares two settings, each of which is right by itself."""
    return details["type"] == CHECK and "other" in details.get("ctx", {})


def is_absent(key: Key, details: ErrorDetails, layers: Sequence[Layer]) -> bool:
    """Whether a required setting is given nowhere (a list that is too short is "missing" to pydantic as well)."""
    return details["type"] == "missing" and not any(key in layer.where for layer in layers)


def of(key: Key, details: ErrorDetails, layers: Sequence[Layer]) -> str:
    """The line for one of pydantic's errors, about the first layer that has the key."""
    entry = details.get("ctx", {}).get("entry")  # the wrong entry of a mapping, which a lower layer may have written
    sources = ((layer, value_at(layer.values, key)) for layer in layers if key in layer.where)
    has_entry = ((layer, v) for layer, v in sources if entry is None or (isinstance(v, dict) and entry in v))
    source, value = next(has_entry, (None, dict[str, Any]()))
    where = source.where[key] if source else "default"
    prefix = source.prefix if source else ""
    path = ".".join(key)
    inside = path in usage.leaves() and "." not in key[-1]  # a wrong key in a setting that is a mapping
    if details["type"] == "extra_forbidden" and not inside:
        return f"{prefix}{unknown(key, where)}"
    leaf = usage.leaves()[path]
    if is_absent(key, details, layers):
        return f"{path}: not given; expected {leaf.accepts}, from --{path} VALUE or the file"
    if new := renamed.new_value(path, value):
        return f"{prefix}{path}: {value} is now {new} ({where})"
    text = leaf.default.removeprefix("default ")
    if source:
        text = shown({entry: value[entry]} if entry else value)
    return f"{prefix}{path}: found {text} ({where}); expected {_expected(leaf, key, details)}"


def _expected(leaf: usage.Leaf, key: Key, details: ErrorDetails) -> str:
    if details["type"] == CHECK:
        return details["msg"]
    inner = details["loc"][details["loc"].index(key[0]) + len(key) :]
    if details["type"] == "extra_forbidden":
        inner = inner[:-1]
    if leaf.accepts == described.MAPPING and inner:
        return f"{described.expected(Settings, (*key, *inner))} in {'.'.join(map(str, inner))}"
    return leaf.accepts + described.not_empty(details)


def unknown(key: Key, where: str) -> str:
    """The line for a key that no setting has, with the nearest one and what there is."""
    path = ".".join(key)
    text = short(plain(path) or "''")
    if path in usage.sections():
        return f"{text}: is a section ({where}); set one of its keys: {', '.join(usage.keys_of(path))}"
    if path in usage.leaves():
        section, _, last = path.partition(".")
        return f"{text}: a key with a dot ({where}); write `{section}:` and, indented below it, `{last}: VALUE`"
    if was := renamed.message(path, where):
        return was
    section = key[0] if key[0] in usage.sections() else ""
    near = _nearest(path[:LONGEST])
    hint = f"; did you mean {near}?" if near else ";"
    return (
        f"{text}: no such setting ({where}){hint} {section or 'the top level'} has {', '.join(usage.keys_of(section))}"
    )


def _nearest(path: str) -> str | None:
    """The setting of the same key in another section, else the one spelled most alike, by path or by key."""
    keys = {leaf.rpartition(".")[2]: leaf for leaf in reversed(usage.leaves())}
    last = path.rpartition(".")[2]
    if last in keys:
        return keys[last]
    near = difflib.get_close_matches(path, usage.leaves(), n=1)
    return near[0] if near else next((keys[key] for key in difflib.get_close_matches(last, keys, n=1)), None)
