"""Which column of a table names the image, which the label, the split and the fold: found by looking at their cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from config.errors import DataError
from data import csvfile
from data.sources import splits
from data.sources.frame import Frame

IDS = (
    *("file_name", "filename", "image_id", "img_id", "image", "img", "id", "image_path", "img_path", "path"),
    *("filepath", "filepaths", "file", "images", "image_name", "img_name", "name"),
)
TARGETS = (
    *("target", "label", "labels", "class", "class_name", "category", "dx", "breed", "species", "diagnosis"),
    *("class_label", "label_name", "classname", "class_id", "classid", "label_id", "category_id"),
)
_SPLITS = ("split", "set", "subset", "data_set", "dataset", "partition", "phase", "usage", "fold")
_FOLDS = ("fold", "folds", "kfold", "fold_id")
_MISSING = frozenset(("nan", "<na>"))
_LOOKED_AT = 200  # cells that tell whether a column names images


@dataclass(frozen=True)
class Columns:
    """The columns that were found; "" for one that the table does not have.

    `one_hot` are the columns of a target that is spread over one column a class; `id_hits` is the share of the cells
    looked at that name an image.
    """

    id: str
    target: str
    split: str
    fold: str
    one_hot: tuple[str, ...] = ()
    id_hits: float = 1.0

    def targets(self, frame: Frame) -> list[str]:
        """The label of each row; `DataError` with the line for a row that has none."""
        if self.one_hot:
            rows = zip(*(frame.cells[name] for name in self.one_hot), strict=True)
            return [self.one_hot[[float(cell) for cell in row].index(1.0)] for row in rows]
        cells = frame.cells[self.target]
        for line, cell in zip(frame.lines, cells, strict=True):
            csvfile.check_cell(frame.path, line, self.target, cell)
            if cell.casefold() in _MISSING:
                what = f"line {line} has {self.target} {cell!r}, which is a missing value"
                raise DataError(f"{frame.path}: {what}; fill it in or remove the line")
        return cells

    @property
    def target_text(self) -> str:
        """What the labels are in, for people."""
        if self.one_hot:
            shown = ", ".join(self.one_hot[:3]) + (", ..." if len(self.one_hot) > 3 else "")
            return f"{len(self.one_hot)} one-hot columns ({shown})"
        return f"column {self.target!r}"


def find_id(frame: Frame, asked: str | None, is_image: Callable[[str], bool]) -> tuple[str, float]:
    """The column that names the images and the share of its cells that do: the one asked for, else the one most of
    whose cells are images, usual names first."""
    if asked:
        column = frame.require(asked, "data.id_column")
        return column, _hits(frame.cells[column], is_image)
    hits = {name: _hits(frame.cells[name], is_image) for name in frame.columns}
    best = max(frame.columns, key=lambda name: (hits[name], -_rank(name, IDS)))
    return best, hits[best]


def find(frame: Frame, asked_id: str | None, asked_target: str | None, is_image: Callable[[str], bool]) -> Columns:
    """All columns of a table of labelled images; `DataError` where it is not clear which one holds the label.

    The target is "" where there is no column that could be it.
    """
    id_column, hits = find_id(frame, asked_id, is_image)
    others = [name for name in frame.columns if name != id_column]
    split = _usual(frame, others, _SPLITS, splits.of_name)
    others = [name for name in others if name != split]
    fold = _usual(frame, others, _FOLDS, lambda cell: cell.lstrip("-").isdigit())
    others = [name for name in others if name != fold]
    target, one_hot = min(others, key=lambda name: _rank(name, TARGETS), default=""), tuple[str, ...]()
    if asked_target:
        target = frame.require(asked_target, "data.target_column")
    elif _rank(target, TARGETS) == len(TARGETS):
        one_hot = _one_hot(frame, others)
        target = "" if one_hot else _only_target(frame, others)
    return Columns(id_column, target, split, fold, one_hot, hits)


def _hits(cells: Sequence[str], is_image: Callable[[str], bool]) -> float:
    chosen = cells[:: max(1, len(cells) // _LOOKED_AT)][:_LOOKED_AT]
    return sum(bool(cell) and is_image(cell) for cell in chosen) / len(chosen)


def _rank(name: str, usual: Sequence[str]) -> int:
    plain = name.casefold().replace(" ", "_").replace("-", "_")
    return usual.index(plain) if plain in usual else len(usual)


def _usual(frame: Frame, columns: Sequence[str], usual: Sequence[str], fits: Callable[[str], object]) -> str:
    """The first column of a usual name whose cells all fit; "" for none."""
    named = (name for name in columns if _rank(name, usual) < len(usual))
    return next((name for name in named if all(map(fits, set(frame.cells[name])))), "")


def _one_hot(frame: Frame, others: Sequence[str]) -> tuple[str, ...]:
    """The columns that are 0 or 1 throughout and have a single 1 in each row; `DataError` where rows have several."""
    binary = [name for name in others if set(frame.cells[name]) <= {"0", "1", "0.0", "1.0", "0.", "1."}]
    if len(binary) < 2:
        return ()
    ones = np.array([[float(cell) for cell in frame.cells[name]] for name in binary]).sum(axis=0)
    if (ones == 1).all():
        return tuple(binary)
    row = int(np.flatnonzero(ones != 1)[0])
    raise DataError(
        f"{frame.path}: line {frame.lines[row]} has {int(ones[row])} ones among {', '.join(binary[:4])}; one-hot"
        " labels have a single 1 in each row, several labels for an image are not supported; set data.target_column"
    )


def _only_target(frame: Frame, others: Sequence[str]) -> str:
    """The only column of few distinct cells; "" for none, `DataError` for several."""
    distinct = {name: set(frame.cells[name]) for name in others}
    few = [
        name
        for name, cells in distinct.items()
        if 2 <= len(cells) <= max(2, len(frame) // 2) and not any(map(_is_fraction, cells))
    ]
    if len(few) > 1:
        several = ", ".join(map(repr, few))
        raise DataError(f"{frame.path}: several of its columns could be the label: {several}; set data.target_column")
    return few[0] if few else ""


def _is_fraction(cell: str) -> bool:
    try:
        return not float(cell).is_integer()
    except (ValueError, OverflowError):
        return False
