"""What a pydantic model takes, in words, from its JSON schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

MAPPING = "a mapping"
_WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "object": MAPPING,
}
_PLURALS = {"integer": "whole numbers", "number": "numbers", "string": "names"}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def expected(model: type[BaseModel], location: Sequence[int | str]) -> str:
    """What a model takes at a location of one of pydantic's errors."""
    schema = model.model_json_schema()
    node = schema
    for segment in location:
        inner = _inside(node, segment, schema)
        if inner is None:  # what follows names a branch of a union
            break
        node = inner
    texts = []
    for option in node.get("anyOf", [node]):
        keys = definition(option, schema)["properties"] if "$ref" in option else ()
        texts.append(f"{MAPPING} with {', '.join(keys)}" if keys else accepted(option))
    return " or ".join(texts)


def not_empty(fault: ErrorDetails) -> str:
    """What to add to what a setting takes where it is of the right type and empty."""
    return ", not an empty one" if fault["type"] in ("string_too_short", "too_short") else ""


def definition(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The definition in a schema that a node refers to."""
    return dict(schema["$defs"][node["$ref"].rpartition("/")[2]])


def _inside(node: dict[str, Any], segment: int | str, schema: dict[str, Any]) -> dict[str, Any] | None:
    """The node at a key or a position of a node; None where it has none."""
    for branch in node.get("anyOf", [node]):
        option = definition(branch, schema) if "$ref" in branch else branch
        if isinstance(segment, int):
            inner = dict(enumerate(option.get("prefixItems", []))).get(segment, option.get("items"))
        else:
            inner = option.get("properties", {}).get(segment, option.get("additionalProperties"))
        if isinstance(inner, dict):
            return inner
    return None


def accepted(node: dict[str, Any]) -> str:
    """The values that a node of a schema takes."""
    if "expected" in node:
        return str(node["expected"])
    if "anyOf" in node:
        return " or ".join(accepted(option) for option in node["anyOf"])
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return f"one of {', '.join(map(str, node['enum']))}"
    if node.get("type") == "array":
        return _list(node)
    if node.get("type") == "string":
        return "a path" if node.get("format") == "path" else "text"
    return _WORDS[node.get("type", "object")] + _range(node)


def _list(node: dict[str, Any]) -> str:
    entries = node.get("prefixItems")
    item = entries[0] if entries else node["items"]
    if "enum" in item:
        return f"a list of {', '.join(item['enum'])}"
    count = f"{len(entries)} " if entries else ""
    return (
        f"a list of {count}{'mappings' if '$ref' in item else _PLURALS.get(item.get('type'), 'values')}{_range(item)}"
    )


def _range(node: dict[str, Any]) -> str:
    if "minimum" in node and "maximum" in node:
        return f" from {node['minimum']} to {node['maximum']}"
    bounds = [f"{sign} {node[key]}" for key, sign in _BOUNDS.items() if key in node]
    return f" {' and '.join(bounds)}" if bounds else ""
