"""The submission file: the sample's own columns, row order and dtypes, and the probabilities beside it.

Label files (ID and one target column) and wide files (ID and one column a class) are told apart by their columns.
Nothing here overwrites a file. `validate` checks a finished file; `summary` describes what it says.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from config.errors import ConfigError, DataError
from data import csvfile
from infer import aliases as alias
from infer.aliases import Groups

Kind = Literal["int", "float", "text"]
Probabilities = NDArray[np.float32]
_ROWS = 4096  # written at a time


class Rows(NamedTuple):
    """A CSV file as text: its header and its rows."""

    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Layout:
    """How a submission looks. `columns` in order; `ids` in order; `kind` is the dtype of the target of a label file.

    `target` is None in a wide file, whose other columns are class names.
    """

    columns: tuple[str, ...]
    id_column: str
    target: str | None
    kind: Kind
    ids: tuple[str, ...]


def plain_layout(ids: Sequence[str], id_column: str = "ID", target_column: str = "target") -> Layout:
    """What is written where there is no sample: two columns, class names as they are, rows in the order of `ids`."""
    return Layout((id_column, target_column), id_column, target_column, "text", tuple(ids))


def sample_layout(path: Path, class_names: Sequence[str], id_column: str = "ID", *, aliases: Groups = ()) -> Layout:
    """The layout of a sample submission, whose ID column is `id_column` or else the first one.

    A wide sample may ask for `aliases` of classes too, whether the members know those names or not.
    Raises `DataError` when it is no table, repeats an ID, has neither one target column nor a column for each class, or
    holds values of a dtype that the class names do not have.
    """
    header, rows = read_rows(path)
    key = id_column if id_column in header else header[0]
    place, others = header.index(key), [name for name in header if name != key]
    ids = tuple(row[place] for row in rows)
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: repeats the ID {repeated[0]!r}; take the competition's own sample file")
    if len(others) == 1:
        kind = kind_of(row[header.index(others[0])] for row in rows)
        _check_kind(path, others[0], kind, [row[header.index(others[0])] for row in rows], class_names)
        return Layout(tuple(header), key, others[0], kind, ids)
    asked = [name for name in others if name in class_names or name not in alias.names(class_names, aliases)]
    needed = [name for name in class_names if name in others or name not in alias.names(others, aliases)]
    if set(asked) != set(needed):
        raise DataError(f"{path}: {_column_fault(asked, needed)}; take the sample that fits these members")
    return Layout(tuple(header), key, None, "float", ids)


def align(ids: Sequence[str], layout: Layout, source: str) -> NDArray[np.int64]:
    """For each row of the layout, the position of its image in `ids`; file extensions may differ or be absent.

    `DataError` with counts and examples when images are missing or are not asked for.
    """
    have, asked = _matching(list(ids), list(layout.ids))
    places = {name: place for place, name in enumerate(have)}
    missing = [name for name in asked if name not in places]
    extra = sorted(places.keys() - set(asked))
    faults = [f"{len(missing)} of its IDs have no image ({_some(missing)})"] * bool(missing)
    faults += [f"{len(extra)} images are not in it ({_some(extra)})"] * bool(extra)
    if len(places) < len(ids) or len(set(asked)) < len(asked):
        faults = ["IDs and file names match only without their extension, and then some are the same"]
    if faults:
        raise DataError(f"{source}: {'; '.join(faults)}; give --images and --sample of the same test set")
    return np.array([places[name] for name in asked], dtype=np.int64)


def write(
    path: Path,
    layout: Layout,
    probabilities: Probabilities,
    class_names: Sequence[str],
    errors: Sequence[str] | None = None,
    *,
    labels: NDArray[np.int64] | None = None,
    aliases: Groups = (),
) -> Path:
    """Write the submission and, beside it, `STEM_probabilities.csv`; returns the path of the latter.

    `probabilities` float32 `[N, C]` in the order of `layout.ids`, the cells of a row of NaN stay empty; `labels` int64
    `[N]` are the chosen classes, else the most probable ones. In a wide file `aliases` share the probability of their
    class. The numbers of a row, as they are printed, sum to one. `errors` become one more column of the probabilities.
    `ConfigError` when a file exists already.
    """
    beside = probabilities_path(path)
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = [layout.id_column, *class_names]
    wide = _wide(header, layout, probabilities, class_names, ())
    told = wide if errors is None else ([*cells, error] for cells, error in zip(wide, errors, strict=True))
    _write_rows(beside, [*header, *["error"] * (errors is not None)], told)
    if layout.target is None:
        _write_rows(path, layout.columns, _wide(layout.columns, layout, probabilities, class_names, aliases))
    else:
        _write_rows(path, layout.columns, _labels(layout, probabilities, labels, class_names))
    return beside


def probabilities_path(path: Path) -> Path:
    """Where the probabilities of the submission `path` stand."""
    return path.with_name(f"{path.stem}_probabilities.csv")


def refuse_existing(path: Path) -> None:
    """`ConfigError` when the submission `path` or its probabilities exist."""
    for file in (path, probabilities_path(path)):
        if file.exists():
            raise ConfigError(f"{file}: exists already and is not overwritten; give another --out")


def prepare(out: Path) -> None:
    """Make the folder that `out`, a new `.csv` or a folder, needs; `ConfigError` when it is taken or cannot be made."""
    if out.suffix == ".csv":
        refuse_existing(out)
    folder = out.parent if out.suffix == ".csv" else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {folder} is no folder and cannot be made one ({error.strerror})") from error


def destination(out: Path, models: Sequence[str], views: Sequence[str], now: datetime) -> Path:
    """`out` itself when it is a `.csv`; else a new DATE_MODEL_ensemble_tta_TIME.csv in the folder `out`.

    `models` has one name a member; several different ones read `mixed`. One member leaves `ensemble` out, the original
    view alone leaves `tta` out. A name that is taken gets `_2`, `_3`, ...
    """
    if out.suffix == ".csv":
        return out
    model = models[0] if len(set(models)) == 1 else "mixed"
    parts = [f"{now:%Y%m%d}", model, "ensemble" * (len(models) > 1), "tta" * (tuple(views) != ("original",))]
    stem = "_".join([*filter(None, parts), f"{now:%H%M%S}"])
    path, number = out / f"{stem}.csv", 1
    while path.exists() or probabilities_path(path).exists():
        number += 1
        path = out / f"{stem}_{number}.csv"
    return path


def read_rows(path: Path) -> Rows:
    """A CSV file of at least two columns and one row; `DataError`, with its line, for whatever is wrong."""
    rows = [row.cells for row in csvfile.read(path, ())]
    if len(rows[0]) < 2:
        raise DataError(
            f"{path}: has one column only; a submission has an ID column and at least one other, separated by commas"
        )
    return Rows(list(rows[0]), [list(cells.values()) for cells in rows])


def kind_of(cells: Iterable[str]) -> Kind:
    """The narrowest dtype that all cells have, as pandas would infer it; `text` for none."""
    kinds = {_cell_kind(cell) for cell in cells}
    if not kinds or "text" in kinds:
        return "text"
    return "float" if "float" in kinds else "int"


def _cell_kind(cell: str) -> Kind:
    try:
        number = float(cell)
    except ValueError:
        return "text"
    if not math.isfinite(number):
        return "text"
    return "int" if cell.strip().lstrip("+-").isdigit() else "float"


def _check_kind(path: Path, column: str, kind: Kind, cells: Sequence[str], class_names: Sequence[str]) -> None:
    if kind == "float" and any(not float(cell).is_integer() for cell in cells):
        raise DataError(
            f"{path}: column {column!r} holds fractions, which are no class labels; "
            "only labels and one probability column a class can be written"
        )
    wrong = [name for name in class_names if kind != "text" and _cell_kind(name) == "text"]
    if wrong:
        raise DataError(
            f"{path}: column {column!r} holds numbers, but the members' classes are names such as {wrong[0]!r}; "
            "train on the competition's own labels"
        )


def _column_fault(others: Sequence[str], class_names: Sequence[str]) -> str:
    missing = [name for name in class_names if name not in others]
    extra = [name for name in others if name not in set(class_names)]
    if not others:
        return "has no target column"
    if len(missing) == len(class_names):
        return f"has the columns {_some(others)}, neither one target nor one for each class ({_some(class_names)})"
    parts = [f"lacks the classes {_some(missing)}"] * bool(missing)
    parts += [f"has columns that are no class: {_some(extra)}"] * bool(extra)
    return " and ".join(parts)


def _labels(
    layout: Layout, probabilities: Probabilities, chosen: NDArray[np.int64] | None, class_names: Sequence[str]
) -> Iterable[list[str]]:
    cells = [_label(name, layout.kind) for name in class_names]
    first = layout.columns[0] == layout.id_column
    known = np.isfinite(probabilities[:, 0])
    best = probabilities.argmax(axis=1) if chosen is None else chosen
    for name, place, answered in zip(layout.ids, best, known, strict=True):
        cell = cells[place] if answered else ""
        yield [name, cell] if first else [cell, name]


def _label(name: str, kind: Kind) -> str:
    if kind == "text":
        return name
    return str(int(float(name))) if kind == "int" else str(float(name))


def _wide(
    header: Sequence[str], layout: Layout, probabilities: Probabilities, class_names: Sequence[str], aliases: Groups
) -> Iterable[list[str]]:
    """Rows whose class columns follow `header`; those of a row of NaN are empty."""
    asked = [name for name in header if name != layout.id_column]
    at = header.index(layout.id_column)
    for start in range(0, len(probabilities), _ROWS):
        shared = alias.shared(probabilities[start : start + _ROWS], class_names, aliases, asked)
        for name, row in zip(layout.ids[start : start + _ROWS], shared, strict=True):
            cells = _printed(row) if np.isfinite(row[0]) else [""] * len(row)
            yield [*cells[:at], name, *cells[at:]]


def _printed(row: Probabilities) -> list[str]:
    """Nine digits, which keep a float32 exactly; the largest number is what the others leave of one."""
    exact = row.astype(np.float64)
    largest = int(exact.argmax())
    cells = [f"{value:.9g}" for value in exact / exact.sum()]
    cells[largest] = repr(1 - math.fsum(float(cell) for place, cell in enumerate(cells) if place != largest))
    return cells


def _write_rows(path: Path, header: Sequence[str], rows: Iterable[list[str]]) -> None:
    with path.open("x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).name else name


def _matching(ids: list[str], asked: list[str]) -> tuple[list[str], list[str]]:
    """Both lists as they are, or with the extensions of one or both taken off when nothing matches otherwise."""
    short, brief = [_stem(name) for name in ids], [_stem(name) for name in asked]
    pairs = [(ids, asked), (short, asked), (ids, brief), (short, brief)]
    return next((pair for pair in pairs if set(pair[0]) & set(pair[1])), (ids, asked))


def _some(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
