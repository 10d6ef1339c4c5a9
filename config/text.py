"""Values of settings as text: on one line for a message, with dotted names for a comparison."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

LONGEST = 60  # characters of a value that a message quotes


def plain(value: Any) -> str:
    """A value as a person would write it in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(plain(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{plain(key)}: {plain(item)}' for key, item in value.items())}}}"
    text = str(value)
    return text if text.isprintable() else ascii(text)


def shown(value: Any) -> str:
    """A value as it was found, on one line and not too long; text in quotes."""
    return short(repr(value) if isinstance(value, str) and value.isprintable() else plain(value))


def short(text: str) -> str:
    """The text, cut where it is too long for a message."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number of things: `1 image`, `2 classes`; `plural` where it takes more than an s."""
    return f"{count:,} {noun if count == 1 else plural or (f'{noun}es' if noun.endswith('s') else f'{noun}s')}"


def duration(seconds: float) -> str:
    """Seconds for people: `4.2 s`, `42 s`, `4 min 02`, `4 h 02`."""
    if round(seconds) < 60:
        return f"{seconds:.{1 if seconds < 10 else 0}f} s"
    minutes, rest = divmod(round(seconds), 60)
    first, second, unit = (*divmod(minutes, 60), "h") if minutes >= 60 else (minutes, rest, "min")
    return f"{first} {unit} {second:02d}" if second else f"{first} {unit}"


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean X?`, or `;` where nothing is near."""
    near = difflib.get_close_matches(name[:LONGEST], known, n=1)
    return f"; did you mean {near[0]}?" if near else ";"


def choices(name: str, known: Iterable[str]) -> str:
    """What a message about an unknown name ends with: `; did you mean X? there are X, Y`."""
    names = list(known)
    return f"{nearest(name, names)} there are {', '.join(names)}"


def flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as (dotted name, value), by name."""
    if isinstance(value, dict):
        return [pair for key in sorted(value) for pair in flat(value[key], f"{prefix}.{key}" if prefix else str(key))]
    return [(prefix, value)]
