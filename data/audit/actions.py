"""What the user decided about findings, applied to the table of images in memory. No file of the data set changes."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from config.errors import DataError
from config.sections.data import Data
from config.text import counted
from data import csvfile, sources
from data.audit.findings import ACTIONS

# What turns an image by degrees clockwise.
TURNS = {"90": cv2.ROTATE_90_CLOCKWISE, "180": cv2.ROTATE_180, "270": cv2.ROTATE_90_COUNTERCLOCKWISE}


@dataclass(frozen=True)
class Step:
    """One row that asks for something: `value` is the new label, the group's name, or degrees clockwise."""

    line: int
    id: str
    action: str
    value: str


@dataclass(frozen=True, eq=False)
class Applied:
    """A data set as the user wants it, its turns and groups in the table, and the steps that made it so."""

    table: sources.Table
    steps: tuple[Step, ...] = ()

    def summary(self) -> str:
        """What was done, in a line."""
        counts = Counter(step.action for step in self.steps)
        return ", ".join(f"{counts[action]} {action}" for action in ACTIONS if counts[action]) or "nothing to do"


def load(data: Data) -> Applied:
    """The training set that the settings name, with their `audit_actions` applied and their `classes` alone."""
    table = sources.load(data)
    applied = apply(table, read(data.audit_actions), data.audit_actions) if data.audit_actions else Applied(table)
    return replace(applied, table=of_classes(applied.table, data.classes)) if data.classes else applied


def of_classes(table: sources.Table, names: Sequence[str]) -> sources.Table:
    """The images of these classes alone, in the table's order; `DataError` for fewer than two, or one that has none."""
    unknown = next((name for name in names if name not in table.class_names), None)
    if unknown:
        raise DataError(f"data.classes: {unknown!r} is no class of {table.root}{_hint(unknown, table.class_names)}")
    if len(names) < 2:
        raise DataError(f"data.classes: only {names[0]!r}; a classifier needs images of two or more classes")
    present = tuple(name for name in table.class_names if name in names)
    rows = np.flatnonzero([table.class_names[label] in present for label in table.labels])
    labels = np.array([present.index(table.class_names[table.labels[i]]) for i in rows], dtype=np.int64)
    return replace(table.take(rows), labels=labels, class_names=present)


def read(path: Path) -> list[Step]:
    """The rows of an `audit.csv` that ask for something; `DataError` with the line for one that cannot be done.

    Columns ID and action are needed, value where an action takes one. Rows about test images or about no image, and
    empty actions, ask for nothing.
    """
    rows = csvfile.read(path, [])
    missing = [name for name in ("ID", "action") if name not in rows[0].cells]
    if missing:
        raise DataError(f"{path}: no column {missing[0]!r}; give an audit.csv as `python -m data audit` writes it")
    return [
        _step(path, row)
        for row in rows
        if row.cells["action"] and row.cells["ID"] and row.cells.get("split", "train") in ("", "train")
    ]


def apply(table: sources.Table, steps: Sequence[Step], source: Path) -> Applied:
    """The table after `steps`: drop wins over everything else; two different labels or turns for an image are refused.

    A dropped image that is gone already is no fault. A class that is left without images disappears.
    """
    known = set(table.ids)
    gone = [step for step in steps if step.id not in known and step.action != "drop"]
    if gone:
        raise DataError(f"{source}: line {gone[0].line} names {gone[0].id!r}, which is not in the data set; remove it")
    dropped = {step.id for step in steps if step.action == "drop"}
    labels = _decided(source, steps, "relabel")
    for step in steps:
        if step.action == "relabel" and step.value not in table.class_names:
            hint = _hint(step.value, sorted(table.class_names))
            raise DataError(f"{source}: line {step.line} relabels to {step.value!r}, which is no class{hint}")
    turned = {name: TURNS[value] for name, value in _decided(source, steps, "rotate").items()}
    rows = [i for i, name in enumerate(table.ids) if name not in dropped]
    targets = [labels.get(table.ids[i], table.class_names[table.labels[i]]) for i in rows]
    names = sources.sort_classes(targets)
    if len(names) < 2:
        left = f"{counted(len(rows), 'image')} of {counted(len(names), 'class')}"
        raise DataError(f"{source}: leaves {left}; take some of its rows back")
    after = table.take(rows)
    after = replace(
        after,
        labels=np.array([names.index(target) for target in targets], dtype=np.int64),
        class_names=names,
        turns={path: turned[name] for name, path in zip(after.ids, after.paths, strict=True) if name in turned},
        groups=_groups(after.ids, steps),
    )
    return Applied(after, tuple(step for step in steps if step.id in known))


def _step(path: Path, row: csvfile.Row) -> Step:
    action, value = row.cells["action"].lower(), row.cells.get("value", "")
    if action not in ACTIONS:
        near = difflib.get_close_matches(action, ACTIONS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise DataError(f"{path}: line {row.line} has action {action!r}{hint}; one of {', '.join(ACTIONS)}, or nothing")
    if action in ("relabel", "group") and not value:
        what = "the new label" if action == "relabel" else "the group's name"
        raise DataError(f"{path}: line {row.line} says {action} and has no value; write {what} there")
    if action == "rotate" and value not in TURNS:
        raise DataError(f"{path}: line {row.line} says rotate by {value!r}; write 90, 180 or 270 degrees clockwise")
    return Step(row.line, row.cells["ID"], action, value)


def _decided(source: Path, steps: Sequence[Step], action: str) -> dict[str, str]:
    """The value of one action by ID."""
    decisions: dict[str, Step] = {}
    for step in (step for step in steps if step.action == action):
        other = decisions.setdefault(step.id, step)
        if other.value != step.value:
            raise DataError(
                f"{source}: lines {other.line} and {step.line} {action} {step.id!r} to {other.value!r} and to "
                f"{step.value!r}; keep one of them"
            )
    return {name: step.value for name, step in decisions.items()}


def _hint(name: str, classes: Sequence[str]) -> str:
    """The class that an unknown name is nearest to, or the first classes that there are."""
    near = difflib.get_close_matches(name, classes, n=1)
    return f", did you mean {near[0]!r}?" if near else f"; there are {', '.join(classes[:8])}"


def _groups(ids: Sequence[str], steps: Sequence[Step]) -> NDArray[np.int64] | None:
    asked = [(step.id, step.value) for step in steps if step.action == "group"]
    if not asked:
        return None
    row_of = {name: i for i, name in enumerate(ids)}
    groups = np.arange(len(ids), dtype=np.int64)
    first: dict[str, int] = {}
    for name, group in asked:
        if name in row_of:
            head = first.setdefault(group, row_of[name])
            groups[groups == groups[row_of[name]]] = groups[head]
    return groups
