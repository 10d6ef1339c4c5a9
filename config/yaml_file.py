"""One YAML document as a layer: plain values, each key with its place. What the keys mean is not known here.

Every scalar but null stays text, so that the schema's type decides what it is and not YAML's guess: `off`, `no`, `1e-3`
and `007` mean the same in a file and on a command line. Aliases, tags and deep nesting have no use in settings
and are refused; nothing is ever constructed from a tag (PyYAML's safe loader, composed only).
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from config.errors import ConfigError

_MOST_BYTES = 256 * 1024
_MOST_LEVELS = 12
_NULL, _TEXT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:str"


Key = tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """One source of settings: `values` as nested dicts, lists, text and None; `where` each key stands, for people.

    An entry of a list counts as a key, "0" and so on. `prefix` comes before the keys of a layer that is a section of a
    document, in messages.
    """

    values: dict[str, Any] = field(default_factory=dict)
    where: dict[Key, str] = field(default_factory=dict)
    prefix: str = ""


def read(path: Path, name: str) -> Layer:
    """The document in `path`; `name` is what the one-line `ConfigError` of an unusable one calls it."""
    text = _read_text(path, name)
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            return Layer()
        if not isinstance(node, yaml.MappingNode):
            raise _fault("expected settings, lines such as `seed: 1`", node)
        lines: dict[Key, int] = {}
        values = _mapping(node, (), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{name}, line {mark.line + 1 if mark else 1}: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{name}, line {line}: the character {error.character!a} is not allowed in YAML") from error
    except (ValueError, OverflowError) as error:  # PyYAML lets chr() and int() of a bad escape through
        raise ConfigError(f"{name}: not valid YAML ({error})") from error
    return Layer(values, {key: f"{name}, line {number}" for key, number in lines.items()})


def parse_value(text: str) -> Any:
    """One value of a command line: `null`, `[a, b]`, `{a: b}` and quoted text as YAML, anything else as it stands."""
    if text not in ("null", "~") and not text.startswith(("[", "{", '"', "'")):
        return text
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _value(node, (), {})
    except (yaml.YAMLError, ValueError, OverflowError):
        return text


def dump(values: dict[str, Any]) -> str:
    """YAML that any YAML reader gives back as `values`; keys in their order, plain lists in one line."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20)


def put(values: dict[str, Any], key: Key, value: Any) -> None:
    """Set a key of nested values in place; mappings on the way are made."""
    for segment in key[:-1]:
        values = values.setdefault(segment, {})
    values[key[-1]] = value


def value_at(values: Any, key: Key) -> Any:
    """The value of a key of nested values; `KeyError` where there is none."""
    return functools.reduce(operator.getitem, key, values)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that resolves null alone and stops at aliases and deep nesting."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the base class' own form)
        first: [entry for entry in entries if entry[0] == _NULL]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    levels = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not supported; write it out", problem_mark=mark)
        if self.levels == _MOST_LEVELS:
            raise yaml.MarkedYAMLError(problem="nested too deeply for settings", problem_mark=mark)
        self.levels += 1
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper without aliases, lists of plain values in one line."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML folds U+0085 and its like into a space in single quotes.
        return self.represent_scalar(_TEXT, data, style=None if data.isprintable() else '"')

    def represent_list(self, data: Any) -> yaml.SequenceNode:
        plain = not any(isinstance(item, dict) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=plain)


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_representer(list, _Dumper.represent_list)


def _read_text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{name}: cannot be read ({reason}); give the path of a YAML file") from error
    if len(raw) > _MOST_BYTES:
        raise ConfigError(
            f"{name}: more than {_MOST_BYTES // 1024} KiB, which no settings file has; is it another file?"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{name}, line {line}: the byte 0x{raw[error.start]:02x} is not UTF-8; save it as UTF-8"
        ) from error


def _value(node: yaml.Node, path: Key, lines: dict[Key, int]) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, lines)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, str(i)), lines) for i, item in enumerate(node.value)]
    if node.tag == _NULL:
        return None
    if node.tag != _TEXT:
        raise _fault(f"the tag {node.tag!a} is not supported; write the plain value", node)
    return _text(node)


def _mapping(node: yaml.MappingNode, path: Key, lines: dict[Key, int]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _fault("a key must be a name", key_node)
        key = _text(key_node)
        if key in values:
            raise _fault(f"the key {key!a} stands here a second time; keep one", key_node)
        inner = (*path, key)
        lines[inner] = key_node.start_mark.line + 1
        values[key] = _value(value_node, inner, lines)
    return values


def _text(node: yaml.Node) -> str:
    text = str(node.value)
    if not writable(text):
        raise _fault("holds a character that no text file or path can hold", node)
    return text


def writable(text: str) -> bool:
    """Whether a path and a UTF-8 file can hold `text`: no NUL, no lone surrogate."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def _fault(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
