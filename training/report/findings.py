"""Other content of the page: a submission, an audit, failures, figures of the machine, commands."""

from __future__ import annotations

import csv
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from config.errors import DataError
from data import csvfile
from infer.io import submission as sent
from training.run import outcome, results

_SHOWN = 200
# What the rows of `history.jsonl` say about the machine: column, title, and how a fold's epochs are summed up.
_MACHINE: tuple[tuple[str, str, Callable[[list[float]], float]], ...] = (
    ("cpu_percent", "CPU, mean %", fmean),
    ("memory_gib", "Memory, peak GiB", max),
    ("device_memory_gib", "Device memory, peak GiB", max),
    ("gpu_percent", "GPU, mean %", fmean),
    ("gpu_memory_gib", "GPU memory, peak GiB", max),
    ("disk_free_gib", "Disk free, least GiB", min),
    ("disk_read_gib", "Read from disk, GiB", sum),
    ("network_gib", "Network, GiB", sum),
)


def submission(path: Path) -> dict[str, Any]:
    """Name, rows and predicted images of each class, of a label file or of one with a column of probability a class.

    Where it has one column of probability, the classes are those of the probabilities beside it. `DataError` for a file
    that is none of these.
    """
    rows, beside = csvfile.read(path, ()), sent.probabilities_path(path)
    if beside.exists():
        key = csvfile.header(beside)[0]
        cells = [list(row.cells.values()) for row in rows] if len(rows[0].cells) == 2 else []
        if any(sent.fractions(column) for column in zip(*cells, strict=True)):
            rows = csvfile.read(beside, ())
    else:
        key = next(iter(rows[0].cells))
    counts = Counter[str]()
    for row in rows:
        names = [name for name in row.cells if name not in (key, "error")]
        if not names:
            raise DataError(f"{path}: has one column alone, so that it is no submission; give the file that was sent")
        counts[row.cells[names[0]] if len(names) == 1 else max(names, key=lambda name: _number(path, row, name))] += 1
    return {"name": path.name, "rows": len(rows), "counts": counts}


def _number(path: Path, row: csvfile.Row, name: str) -> float:
    try:
        return float(row.cells[name])
    except ValueError as error:
        raise DataError(f"{path}: line {row.line} has {row.cells[name]!r} for {name!r}, which is no number") from error


def audit(folders: list[Path]) -> dict[str, Any] | None:
    """The first findings of the first `audit.csv` in `folders`, and the number of each kind; None without a file."""
    path = next((folder / "audit.csv" for folder in folders if (folder / "audit.csv").exists()), None)
    if path is None:
        return None
    with path.open(newline="", encoding="utf-8-sig") as stream:
        titles, *rows = list(csv.reader(stream)) or [[]]
    kinds = (row[titles.index("finding")].replace("_", " ") for row in rows) if "finding" in titles else ()
    counts = Counter(kinds)
    return {"titles": titles, "rows": rows[:_SHOWN], "total": len(rows), "counts": list(counts.items())}


def left_out(out: Path, runs: list[Path]) -> list[dict[str, Any]]:
    """The folds that were left out, as `member`, `fold` and `reason`: those of the campaign in whose folder the page
    is, or else of the runs."""
    file = out.parent / outcome.FAILED
    if file.exists():
        return list(results.read_yaml(file))
    return [row for run in runs for fold in sorted(run.glob("fold_*")) if (row := outcome.left_out(fold))]


def machine(run: Path) -> dict[str, Any]:
    """What each fold used of the machine: titles, and a row of values for each fold that has any."""
    rows = []
    for path in results.fold_files(run, "history.jsonl"):
        epochs = [row["system"] for row in results.epochs(path.parent) if row.get("system")]
        if epochs:
            columns = [[e[key] for e in epochs if e.get(key) is not None] for key, _, _ in _MACHINE]
            values = [row[2](column) if column else None for row, column in zip(_MACHINE, columns, strict=True)]
            rows.append({"fold": path.parent.name.replace("_", " "), "values": values})
    shown = [i for i in range(len(_MACHINE)) if any(row["values"][i] is not None for row in rows)]
    return {
        "titles": [_MACHINE[i][1] for i in shown],
        "rows": [{**row, "values": [row["values"][i] for i in shown]} for row in rows],
    }


def commands(run: Path, starts: list[dict[str, Any]]) -> list[str]:
    """The commands that made the run, each once, and those that use it."""
    lines = [f"python {start['command']}" for start in starts]
    folds = " ".join(shlex.quote(str(path)) for path in sorted(run.glob("fold_*/best")))
    return [
        *dict.fromkeys(lines),
        f"python -m training report {shlex.quote(str(run))}",
        f"python -m infer --member {folds} --images DIR --out submission.csv",
    ]
