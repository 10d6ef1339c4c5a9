"""Runs beside each other: their scores, the spread over their folds, their time, and the settings in which they differ.

Only files of the runs are read, so that runs of other machines and of older versions can be compared.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from config import load, renamed
from config.errors import CheckpointError
from config.text import duration, flat
from training.run import results, run_dir

METRICS = {"macro_f1": "macro-F1", "accuracy": "accuracy", "log_loss": "log loss"}
_LONGEST = 40  # characters of a setting's value that are shown


@dataclass(frozen=True)
class Entry:
    """A run with at least one trained fold. `settings` are those that change what a run computes, by dotted name."""

    name: str
    folds: tuple[dict[str, Any], ...]
    settings: dict[str, Any]
    split: str

    def mean(self, metric: str) -> float:
        """Over the folds."""
        return float(np.mean([fold[metric] for fold in self.folds]))

    def spread(self, metric: str) -> float:
        """Standard deviation over the folds (n - 1); NaN for one fold."""
        return float(np.std([fold[metric] for fold in self.folds], ddof=1)) if len(self.folds) > 1 else float("nan")

    def seconds(self) -> float:
        """Training time of all folds together."""
        return float(sum(fold["seconds"] for fold in self.folds))


def read(paths: Sequence[Path]) -> list[Entry]:
    """The runs in `paths`, which are runs or folders that hold runs at any depth, such as `runs/` or a campaign.

    Runs without a trained fold are left out; `CheckpointError` where none is left.
    """
    found = {path.resolve(): path for given in paths for path in _runs(given)}
    entries = [_entry(path) for path in found.values() if _results(path)]
    if not entries:
        raise CheckpointError(f"{', '.join(map(str, paths))}: no run with a trained fold; give run folders")
    return entries


def only(path: Path) -> Entry:
    """The one run in `path`; `CheckpointError` where there are several."""
    entries = read([path])
    if len(entries) > 1:
        raise CheckpointError(f"{path}: holds {len(entries)} runs, such as {entries[0].name}; give one of them")
    return entries[0]


def ranked(entries: Iterable[Entry], metric: str) -> list[Entry]:
    """The best first; runs without a finite score last."""
    sign = 1 if metric == "log_loss" else -1
    return sorted(entries, key=lambda e: (not np.isfinite(e.mean(metric)), sign * e.mean(metric), e.name))


def table(entries: Sequence[Entry], metric: str) -> str:
    """The ranking, and below it what distinguishes each run from the best one."""
    best, *others = entries
    columns = [metric, *(name for name in METRICS if name != metric)]
    titles = ["", "run", METRICS[metric], "±", *(METRICS[name] for name in columns[1:]), "folds", "epochs", "time"]
    rows = [
        [
            str(rank),
            entry.name,
            f"{entry.mean(metric):.4f}",
            _spread(entry, metric),
            *(f"{entry.mean(name):.4f}" for name in columns[1:]),
            str(len(entry.folds)),
            f"{np.mean([fold['epochs'] for fold in entry.folds]):.0f}",
            duration(entry.seconds()),
        ]
        for rank, entry in enumerate(entries, start=1)
    ]
    lines = _aligned([titles, *rows], left=(1,))
    if others:
        keys = sorted({key for entry in others for key in different(best, entry)})
        lines += ["", "settings that differ"] + [f"1  {_said(best, keys)}"] * bool(keys)
        lines += [f"{rank}  {_said(e, different(best, e)) or 'as 1'}" for rank, e in enumerate(others, start=2)]
    if len({entry.split for entry in entries}) > 1:
        lines += ["", "not all runs have the same folds.csv: part of their distance is the luck of the split"]
    return "\n".join(lines)


def versus(one: Entry, other: Entry) -> str:
    """Two runs side by side: scores, time, and every setting that differs."""
    rows = [["", one.name, other.name]]
    for metric, title in METRICS.items():
        rows.append([title, *(f"{e.mean(metric):.4f} ± {_spread(e, metric)}" for e in (one, other))])
    rows.append(["folds", *(str(len(e.folds)) for e in (one, other))])
    rows.append(["time", *(duration(e.seconds()) for e in (one, other))])
    keys = different(one, other)
    rows += [[key, shown_value(one, key), shown_value(other, key)] for key in keys]
    lines = _aligned(rows, left=(0, 1, 2))
    lines += [] if keys else ["no setting differs"]
    lines += ["the folds are not the same"] if one.split != other.split else []
    return "\n".join(lines)


def different(one: Entry, other: Entry) -> list[str]:
    """The names of the settings in which two runs differ."""
    keys = sorted(one.settings.keys() | other.settings.keys())
    return [key for key in keys if one.settings.get(key) != other.settings.get(key)]


def _runs(path: Path) -> list[Path]:
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such folder; give run folders, or one that holds them")
    if (path / run_dir.CONFIG).exists():
        return [path]
    return sorted(file.parent for file in path.rglob(run_dir.CONFIG))


def _results(path: Path) -> list[Path]:
    return sorted(path.glob("fold_*/result.yaml"), key=lambda p: (len(p.parent.name), p.parent.name))


def _entry(path: Path) -> Entry:
    split = path / "folds.csv"
    return Entry(
        short_name(path),
        tuple(results.read_yaml(file) for file in _results(path)),
        deciding(settings(path / run_dir.CONFIG)),
        split_digest(split) if split.exists() else "",
    )


def settings(config: Path) -> dict[str, Any]:
    """All settings of a run's `config.yaml` by dotted name; those that it does not have yet are as by default.

    Not checked as `load.read` does: a run whose settings today's version refuses is ranked all the same.
    """
    return {**_defaults(), **dict(flat(renamed.upgrade_values(results.read_yaml(config))))}


def deciding(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that change what a run computes."""
    return {key: value for key, value in values.items() if run_dir.decides(key)}


def split_digest(folds: Path) -> str:
    """What tells one `folds.csv` from another."""
    return hashlib.sha256(folds.read_bytes()).hexdigest()


@functools.cache
def _defaults() -> dict[str, Any]:
    return dict(flat(load.parse(["--data.root", "."], prog="").model_dump(mode="json")))


def short_name(path: Path) -> str:
    """The run's name, with its campaign's before it."""
    whole = path.resolve()
    return f"{whole.parents[1].name}/{whole.name}" if whole.parent.name == "members" else whole.name


def _said(entry: Entry, keys: Sequence[str]) -> str:
    return "  ".join(f"{key}={shown_value(entry, key)}" for key in keys)


def shown_value(entry: Entry, key: str) -> str:
    """A setting of a run, cut where it is long."""
    value = entry.settings.get(key, "(absent)")
    text = "null" if value is None else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _spread(entry: Entry, metric: str) -> str:
    return f"{entry.spread(metric):.4f}" if len(entry.folds) > 1 else "-"


def _aligned(rows: Sequence[Sequence[str]], left: tuple[int, ...]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[i].ljust(w) if i in left else row[i].rjust(w) for i, w in enumerate(widths)]
        lines.append("  ".join(cells).rstrip())
    return lines
