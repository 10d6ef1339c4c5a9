"""Runs compared: their scores, the spread over their folds, their time, and the settings in which they differ.

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
    runs = {run.resolve(): run for path in paths for run in _runs(path)}
    entries = []
    for run in runs.values():
        if files := results.fold_files(run, run_dir.RESULT):
            folds, split = tuple(map(results.read_yaml, files)), run / "folds.csv"
            decisive = deciding(settings(run / run_dir.CONFIG))
            entries.append(Entry(short_name(run), folds, decisive, split_digest(split) if split.exists() else ""))
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
        keys = sorted({key for entry in others for key in different(best.settings, entry.settings)})
        lines += ["", "settings that differ"] + [f"1  {_listed(best, keys)}"] * bool(keys)
        for rank, entry in enumerate(others, start=2):
            lines.append(f"{rank}  {_listed(entry, different(best.settings, entry.settings)) or 'as 1'}")
    if len({entry.split for entry in entries}) > 1:
        lines += ["", "not all runs have the same folds.csv: part of their distance is the luck of the split"]
    return "\n".join(lines)


def versus(left: Entry, right: Entry) -> str:
    """Two runs side by side: scores, time, and every setting that differs."""
    keys, pair = different(left.settings, right.settings), (left, right)
    rows = [
        ["", *(entry.name for entry in pair)],
        *([title, *(f"{e.mean(name):.4f} ± {_spread(e, name)}" for e in pair)] for name, title in METRICS.items()),
        ["folds", *(str(len(entry.folds)) for entry in pair)],
        ["time", *(duration(entry.seconds()) for entry in pair)],
        *([key, *(shown_value(entry, key) for entry in pair)] for key in keys),
    ]
    lines = _aligned(rows, left=(0, 1, 2)) + ["no setting differs"] * (not keys)
    return "\n".join(lines + ["the folds are not the same"] * (left.split != right.split))


def different(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """The names of the settings in which two runs differ."""
    return [key for key in sorted(left.keys() | right.keys()) if left.get(key) != right.get(key)]


def _runs(path: Path) -> list[Path]:
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such folder; give run folders, or one that holds them")
    if (path / run_dir.CONFIG).exists():
        return [path]
    return sorted(file.parent for file in path.rglob(run_dir.CONFIG))


def settings(config: Path) -> dict[str, Any]:
    """All settings of a run's `config.yaml` by dotted name; those that it lacks have their defaults.

    They are not checked as in `load.read`, so that a run whose settings today's version refuses is ranked, too.
    """
    return {**_defaults(), **dict(flat(renamed.upgrade_values(results.read_yaml(config))))}


def deciding(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that change what a run computes."""
    return {key: value for key, value in values.items() if run_dir.decides(key)}


def split_digest(folds: Path) -> str:
    """A digest that identifies a `folds.csv`."""
    return hashlib.sha256(folds.read_bytes()).hexdigest()


@functools.cache
def _defaults() -> dict[str, Any]:
    return dict(flat(load.parse(["--data.root", "."], prog="").model_dump(mode="json")))


def short_name(path: Path) -> str:
    """The run's name, with its campaign's before it."""
    run = path.resolve()
    return f"{run.parents[1].name}/{run.name}" if run.parent.name == "members" else run.name


def _listed(entry: Entry, keys: Sequence[str]) -> str:
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
