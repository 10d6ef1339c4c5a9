"""One line of the doctor's report, and a guard that turns a check's own failure into such a line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

OK, NOTE, BAD = "ok", "note", "bad"


@dataclass(frozen=True)
class Check:
    """What was found about `name`. `bad` stops an engine or gives wrong results, `note` may matter; `remedy` says what
    to do about it. `details` are JSON values for `--json`."""

    name: str
    status: str
    found: str
    remedy: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def guarded(name: str, check: Callable[[], Iterable[Check]]) -> list[Check]:
    """The lines of a check; a line that says what it raised where it fails itself."""
    try:
        return list(check())
    except Exception as error:  # a doctor goes on with the next organ, whatever a broken machine raises
        return [Check(name, NOTE, f"not checked: {type(error).__name__}: {error}")]
