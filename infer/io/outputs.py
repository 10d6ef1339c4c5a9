"""Files of results beside the submission: wide probabilities, JSON lines, Parquet, `.npz`. Each is written row by row.

A file is written under a temporary name and then renamed; none is overwritten.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from backends import installed
from config.errors import BackendUnavailable, ConfigError
from config.places import atomic_path
from infer.io import submission

Table = Literal["submission", "wide"]
_CHUNK = 4096  # rows that are in memory at a time


@dataclass(frozen=True, eq=False)
class Results:
    """`probabilities` float32 `[N, C]` of `ids` in input order, and the chosen classes `labels` int64 `[N]`.

    `errors` says why an image could not be read: its row is NaN, or the class prior. `shows_errors` says whether files
    have a column for that.
    """

    ids: list[str]
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    labels: NDArray[np.int64]
    errors: Mapping[int, str]
    shows_errors: bool = False

    def rows(self) -> Iterator[tuple[str, NDArray[np.float32], int, str]]:
        """(ID, float32 `[C]`, chosen class, error or an empty text) of each image."""
        for start in range(0, len(self.ids), _CHUNK):
            block = np.array(self.probabilities[start : start + _CHUNK])
            for row_number, row in enumerate(block, start=start):
                yield self.ids[row_number], row, int(self.labels[row_number]), self.errors.get(row_number, "")


def check(paths: list[Path], table: Table) -> None:
    """Refuse, before any prediction, unknown suffixes, existing files and missing libraries."""
    for path in paths:
        if path.suffix not in (*_WRITERS, ".csv", ""):
            raise ConfigError(f"--out {path}: give a folder or a name that ends in .csv, {', '.join(_WRITERS)}")
        if path.suffix == ".parquet" and not installed("pyarrow"):
            raise BackendUnavailable(
                f'--out {path}: needs pyarrow, not installed here; run: pip install -e ".[parquet]"'
            )
        if is_submission(path, table):
            submission.prepare(path)
            continue
        submission.refuse_file(path)
        submission.make_folder(path, path.parent)
    if len(set(paths)) < len(paths):
        raise ConfigError("--out: names a file twice; keep one of them")


def is_submission(path: Path, table: Table) -> bool:
    """Whether `path` gets the submission: a folder or a `.csv`, unless wide tables are asked for."""
    return path.suffix not in _WRITERS and not (path.suffix == ".csv" and table == "wide")


def write(path: Path, results: Results) -> None:
    """Write a `.csv` of wide probabilities, a `.jsonl`, a `.parquet` or an `.npz`."""
    with atomic_path(path) as unfinished:
        {**_WRITERS, ".csv": _wide}[path.suffix](unfinished, results)
        submission.refuse_file(path)


def _wide(path: Path, results: Results) -> None:
    """ID and one column a class; nine digits keep a float32 exactly. Cells are empty where there is no answer."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["ID", *results.class_names, *["error"] * results.shows_errors])
        for name, row, _, error in results.rows():
            cells = [""] * len(row) if np.isnan(row[0]) else [f"{value:.9g}" for value in row]
            writer.writerow([name, *cells, *[error] * results.shows_errors])


def _json_lines(path: Path, results: Results) -> None:
    """An object a line: id, label, confidence, and the probabilities by class; for an unreadable image the error, with
    the class prior or alone."""
    with path.open("w", encoding="utf-8") as file:
        for name, row, best, error in results.rows():
            record: dict[str, object] = {"id": name}
            if not np.isnan(row[0]):
                values = [float(f"{value:.9g}") for value in row]  # the shortest decimals that give the float32 back
                record |= {"label": results.class_names[best], "confidence": values[best]}
                record["probabilities"] = dict(zip(results.class_names, values, strict=True))
            file.write(json.dumps(record | ({"error": error} if error else {}), ensure_ascii=False) + "\n")


def _parquet(path: Path, results: Results) -> None:
    """Columns id and label, one of float32 for each class, and error where it is shown; null where there is none."""
    import pyarrow as pa
    from pyarrow import parquet

    names = [_free(name, results.class_names) for name in ("id", "label", "error")][: 2 + results.shows_errors]
    columns = [(names[0], pa.string()), (names[1], pa.string())]
    columns += [(name, pa.float32()) for name in results.class_names]
    columns += [(name, pa.string()) for name in names[2:]]
    schema = pa.schema(columns)
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, len(results.ids), _CHUNK):
            block = np.array(results.probabilities[start : start + _CHUNK])
            errors = [results.errors.get(row) for row in range(start, start + len(block))]
            mask = np.isnan(block[:, 0])
            best = results.labels[start : start + len(block)]
            labels = [None if absent else results.class_names[b] for b, absent in zip(best, mask, strict=True)]
            arrays = [pa.array(results.ids[start : start + len(block)]), pa.array(labels, pa.string())]
            arrays += [pa.array(np.ascontiguousarray(column), pa.float32(), mask=mask) for column in block.T]
            arrays += [pa.array(errors, pa.string())] * len(names[2:])
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _free(name: str, taken: tuple[str, ...]) -> str:
    """A column name that no class has."""
    return _free(f"_{name}", taken) if name in taken else name


def _npz(path: Path, results: Results) -> None:
    """`ids`, `class_names`, `probabilities` float32 `[N, C]`, and `errors` where they are shown."""
    arrays = {"ids": np.array(results.ids), "class_names": np.array(results.class_names)}
    if results.shows_errors:
        arrays["errors"] = np.array([results.errors.get(row, "") for row in range(len(results.ids))])
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, probabilities=results.probabilities, **arrays)


_WRITERS: dict[str, Callable[[Path, Results], None]] = {".jsonl": _json_lines, ".parquet": _parquet, ".npz": _npz}
