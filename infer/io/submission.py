"""The submission file: the sample's own columns, row order and dtypes, and the probabilities beside it.

The sample's columns say whether a file is wide (ID and one column a class) or has one target column; the cells of that
column say whether it holds labels or the probability of the positive one of two classes. Nothing here overwrites a
file. `validation` checks a finished file; `summary` describes its predictions.
"""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from config.errors import ConfigError, DataError
from config.places import atomic_path
from config.text import counted
from data import csvfile, names
from ensemble import aliases as alias
from ensemble.aliases import Groups

Kind = Literal["int", "float", "text"]
Probabilities = NDArray[np.float32]
_ROWS = 4096  # written at a time
_NEAR = 20_000  # names among which the nearest is looked for


class Rows(NamedTuple):
    """A CSV file as text: its header and its rows, unchanged, as graders compare them."""

    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Layout:
    """The layout of a submission: `columns` and `ids` in the sample's order; `kind` is the dtype of the target.

    `target` is None in a wide file, whose other columns are class names. With `positive`, one of two classes, the
    target is the probability of that class, not a label. `delimiter` separates the cells. `note` says what was decided.
    """

    columns: tuple[str, ...]
    id_column: str
    target: str | None
    kind: Kind
    ids: tuple[str, ...]
    positive: str | None = None
    delimiter: str = ","
    note: str = ""


def plain_layout(
    ids: Sequence[str],
    class_names: Sequence[str] = (),
    id_column: str = "ID",
    target_column: str = "target",
    positive: str | None = None,
) -> Layout:
    """The layout without a sample: two columns, rows in the order of `ids`, class names as they are or
    the probability of `positive`."""
    if positive is not None:
        _check_positive(positive, class_names)
    return Layout((id_column, target_column), id_column, target_column, "text", tuple(ids), positive)


def sample_layout(
    path: Path,
    class_names: Sequence[str],
    id_column: str | None = "ID",
    *,
    aliases: Groups = (),
    positive: str | None = None,
    ids: Sequence[str] = (),
) -> Layout:
    """The layout of a sample submission, whose ID column is `id_column`, else the one with most of `ids`, or the first.

    A wide sample may ask for `aliases` of classes too, whether the members know those names or not. One column of
    fractions, or any one column where `positive` names a class, gets the probability of that class of two; without
    `positive` of the class that the column is named after, else of the one that sorts last.
    Raises `DataError` when it is no table, repeats an ID, has neither one target column nor a column for each class, or
    holds values of a dtype that the class names do not have; `ConfigError` for a `positive` that does not fit.
    """
    header, rows = read_rows(path)
    columns = {name: [row[column] for row in rows] for column, name in enumerate(header)}
    key = _id_column(columns, id_column, ids)
    others = [name for name in header if name != key]
    repeated = [name for name, count in Counter(map(names.normal, columns[key])).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: repeats the ID {repeated[0]!r}; take the competition's own sample file")
    layout = Layout(tuple(header), key, None, "float", tuple(columns[key]), delimiter=csvfile.delimiter(path))
    if len(others) == 1:
        return _one_target(path, layout, others[0], columns[others[0]], class_names, positive)
    if positive is not None:
        raise ConfigError(f"positive {positive!r}: is for one column of probability, and {path} has one a class")
    others = [_class_of(name, class_names) for name in others]
    asked = [name for name in others if name in class_names or name not in alias.names(class_names, aliases)]
    needed = [name for name in class_names if name in others or name not in alias.names(others, aliases)]
    if set(asked) != set(needed):
        raise DataError(f"{path}: {_column_fault(asked, needed)}; take the sample that fits these members")
    return layout


def align(ids: Sequence[str], layout: Layout, source: str) -> NDArray[np.int64]:
    """For each row of the layout, the position of its image in `ids`.

    IDs are compared in their normal form; where not all are found, without regard to case, kind of slash, folder or
    file extension, if that finds more. `DataError` with counts, examples and the nearest name when images are missing
    or superfluous.
    """
    have, asked = _matching(ids, layout.ids)
    row_of = {name: row for row, name in enumerate(have)}
    wanted, faults = set(asked), []
    missing = [name for name, form in zip(layout.ids, asked, strict=True) if form not in row_of]
    extra = sorted(name for name, form in zip(ids, have, strict=True) if form not in wanted)
    if missing:
        near = csvfile.near(missing[0], (extra or list(ids))[:_NEAR])
        faults.append(f"{counted(len(missing), 'of its IDs has', 'of its IDs have')} no image ({_some(missing)}{near})")
    if extra:
        faults.append(f"{counted(len(extra), 'image is', 'images are')} not in it ({_some(extra)})")
    if len(row_of) < len(ids) or len(set(asked)) < len(asked):
        faults = ["IDs and file names match only without their extension, and then some are the same"]
    if faults:
        raise DataError(f"{source}: {'; '.join(faults)}; give --images and --sample of the same test set")
    return np.array([row_of[name] for name in asked], dtype=np.int64)


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
    with_errors = wide if errors is None else ([*cells, error] for cells, error in zip(wide, errors, strict=True))
    _write_rows(beside, [*header, *["error"] * (errors is not None)], with_errors)
    if layout.target is None:
        rows = _wide(layout.columns, layout, probabilities, class_names, aliases)
    else:
        cells = _target_cells(layout, probabilities, labels, class_names)
        order = 1 if layout.columns[0] == layout.id_column else -1
        rows = ([name, cell][::order] for name, cell in zip(layout.ids, cells, strict=True))
    _write_rows(path, layout.columns, rows, layout.delimiter)
    return beside


def probabilities_path(path: Path) -> Path:
    """The file of the probabilities of the submission `path`."""
    return path.with_name(f"{path.stem}_probabilities.csv")


def refuse_existing(path: Path) -> None:
    """`ConfigError` when the submission `path` or its probabilities exist."""
    for file in (path, probabilities_path(path)):
        refuse_file(file)


def refuse_file(file: Path) -> None:
    """`ConfigError` when the result file exists."""
    if file.exists():
        raise ConfigError(f"{file}: exists already and is not overwritten; give another --out")


def make_folder(out: Path, folder: Path) -> None:
    """Make the folder that `--out` needs; `ConfigError` when it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {folder} is no folder and cannot be made one ({error.strerror})") from error


def prepare(out: Path) -> None:
    """Make the folder that `out`, a new `.csv` or a folder, needs; `ConfigError` when it is taken or cannot be made."""
    if out.suffix == ".csv":
        refuse_existing(out)
    folder = out.parent if out.suffix == ".csv" else out
    make_folder(out, folder)
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--out {out}: {folder} is not writable; change its permissions, or give another")


def destination(out: Path, models: Sequence[str], views: Sequence[str], now: datetime) -> Path:
    """`out` itself when it is a `.csv`; else a new DATE_MODEL_ensemble_tta_TIME.csv in the folder `out`.

    `models` has one name a member; several different ones read `mixed`. One member leaves `ensemble` out, the original
    view alone leaves `tta` out. A name that is taken gets `_2`, `_3`, ...
    """
    if out.suffix == ".csv":
        return out
    model = models[0] if len(set(models)) == 1 else "mixed"
    words = [f"{now:%Y%m%d}", model, "ensemble" * (len(models) > 1), "tta" * (tuple(views) != ("original",))]
    stem = "_".join([*filter(None, words), f"{now:%H%M%S}"])
    path, number = out / f"{stem}.csv", 1
    while path.exists() or probabilities_path(path).exists():
        number += 1
        path = out / f"{stem}_{number}.csv"
    return path


def read_rows(path: Path) -> Rows:
    """A CSV file of at least two columns and one row; `DataError`, with its line, for whatever is wrong."""
    if len(csvfile.read(path, ())[0].cells) < 2:
        raise DataError(
            f"{path}: has one column only; a submission has an ID column and at least one other, separated by commas"
        )
    (_, header), *rows = csvfile.read_lines(path)
    return Rows(header, [cells for _, cells in rows])


def fractions(cells: Sequence[str]) -> bool:
    """Whether a sample's only target column holds numbers that are no labels, such as 0.5."""
    return kind_of(cells) == "float" and not all(float(cell).is_integer() for cell in cells)


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


def _id_column(columns: Mapping[str, Sequence[str]], wanted: str | None, ids: Sequence[str]) -> str:
    named = next((name for name in columns if names.normal(name) == wanted), None)
    if named is not None:
        return named
    known = {form for name in ids for form in (names.key(name), _stem(names.key(name)))}
    matches = {name: sum(names.key(cell) in known for cell in cells) for name, cells in columns.items()}
    return max(matches, key=lambda name: matches[name])


def _one_target(
    path: Path, layout: Layout, column: str, cells: Sequence[str], class_names: Sequence[str], positive: str | None
) -> Layout:
    """The layout with its one target: labels, or the probability of the positive class."""
    kind = kind_of(cells)
    if positive is not None:
        _check_positive(positive, class_names)
        if kind == "text" and any(cell.strip() for cell in cells):
            raise ConfigError(f"positive {positive!r}: {path} has text in column {column!r}, not probabilities")
        return replace(layout, target=column, positive=positive)
    if not fractions(cells):
        _check_labels(path, column, kind, class_names)
        note = f"{path}: column {column!r} gets labels, as its numbers are no fractions; positive CLASS writes P(CLASS)"
        same = len(set(cells)) == 1 and kind != "text" and len(class_names) == 2
        return replace(layout, target=column, kind=kind, note=note if same else "")
    outside = next((cell for cell in cells if not 0 <= float(cell) <= 1), None)
    if outside is not None or len(class_names) != 2:
        lacking = f"{outside} is no probability" if outside else f"the members know {len(class_names)} classes, not two"
        raise DataError(
            f"{path}: column {column!r} holds fractions, which are no class labels, and {lacking}; labels, one "
            "probability column a class, or that of the positive one of two classes can be written"
        )
    is_class = _class_of(column, class_names) in class_names
    chosen = _class_of(column, class_names) if is_class else class_names[-1]
    why = "which it is named after" if is_class else "which sorts last; positive CLASS chooses the other"
    note = f"{path}: column {column!r} gets the probability of class {chosen!r}, {why}"
    return replace(layout, target=column, positive=chosen, note=note)


def _class_of(column: str, class_names: Sequence[str]) -> str:
    """The class that a column is named after, with or without the blanks around its name."""
    return column if column in class_names else names.normal(column)


def _check_positive(positive: str, class_names: Sequence[str]) -> None:
    if positive not in class_names:
        near = csvfile.near(positive, class_names) or f"; there are {_some(class_names, 8)}"
        raise ConfigError(f"positive {positive!r}: is no class of the members{near}")
    if len(class_names) != 2:
        raise ConfigError(
            f"positive {positive!r}: the members know {len(class_names)} classes; one column of probability is for two"
        )


def _check_labels(path: Path, column: str, kind: Kind, class_names: Sequence[str]) -> None:
    wrong = [name for name in class_names if kind != "text" and _cell_kind(name) == "text"]
    if wrong:
        other = ", or give positive CLASS for one column of probability" if len(class_names) == 2 else ""
        raise DataError(
            f"{path}: column {column!r} holds numbers, but the members' classes are names such as {wrong[0]!r}; "
            f"train on the competition's own labels{other}"
        )


def _column_fault(others: Sequence[str], class_names: Sequence[str]) -> str:
    missing = [name for name in class_names if name not in others]
    extra = [name for name in others if name not in set(class_names)]
    if not others:
        return "has no target column"
    if len(missing) == len(class_names):
        return f"has the columns {_some(others)}, neither one target nor one for each class ({_some(class_names)})"
    faults = [f"lacks the classes {_some(missing)}"] * bool(missing)
    faults += [f"has columns that are no class: {_some(extra)}"] * bool(extra)
    return " and ".join(faults)


def _target_cells(
    layout: Layout, probabilities: Probabilities, chosen: NDArray[np.int64] | None, class_names: Sequence[str]
) -> list[str]:
    """Labels, or the probabilities of the positive class, whose nine digits keep a float32 exactly."""
    if layout.positive is not None:
        values = probabilities[:, class_names.index(layout.positive)].tolist()
        return [f"{value:.9g}" if math.isfinite(value) else "" for value in values]
    known = np.isfinite(probabilities[:, 0])
    best = probabilities.argmax(axis=1) if chosen is None else chosen
    printed: dict[Kind, Callable[[str], object]] = {"text": str, "float": float, "int": lambda name: int(float(name))}
    cells = [str(printed[layout.kind](name)) for name in class_names]
    return [cells[label] if predicted else "" for label, predicted in zip(best, known, strict=True)]


def _wide(
    header: Sequence[str], layout: Layout, probabilities: Probabilities, class_names: Sequence[str], aliases: Groups
) -> Iterable[list[str]]:
    """Rows whose class columns follow `header`; those of a row of NaN are empty."""
    asked = [_class_of(name, class_names) for name in header if name != layout.id_column]
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
    cells[largest] = repr(1 - math.fsum(float(cell) for column, cell in enumerate(cells) if column != largest))
    return cells


def _write_rows(path: Path, header: Sequence[str], rows: Iterable[list[str]], delimiter: str = ",") -> None:
    with atomic_path(path) as unfinished:
        with unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
        refuse_file(path)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).name else name


def _matching(ids: Sequence[str], asked: Sequence[str]) -> tuple[list[str], list[str]]:
    """Both lists in the first form, and with or without the extensions of one or both, in which most are the same."""
    best, most = (list(map(names.normal, ids)), list(map(names.normal, asked))), 0
    forms: tuple[Callable[[str], str], ...] = (
        names.normal,
        names.key,
        lambda name: PurePosixPath(names.key(name)).name,
    )
    for form in forms:
        have, wanted = list(map(form, ids)), list(map(form, asked))
        short, brief = list(map(_stem, have)), list(map(_stem, wanted))
        for pair in ((have, wanted), (short, wanted), (have, brief), (short, brief)):
            shared = len(set(pair[0]) & set(pair[1]))
            if shared > most:
                best, most = pair, shared
            if shared == len(asked):
                return pair
    return best


def _some(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
