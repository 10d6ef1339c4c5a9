"""The runs and campaigns below some folders, read again only where a file has changed.

A run that cannot be read, such as a half-copied one, has a line that says why.
"""

from __future__ import annotations

import csv
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from config import load
from config.errors import CheckpointError
from data.names import of_path
from training.board import state
from training.board.state import State
from training.campaign import leaderboard
from training.run import results, run_dir
from training.run.outcome import FAILED

_Parsed = TypeVar("_Parsed")
Kind = Literal["run", "trial", "campaign"]
_FOLDS = "folds.csv"
_KILLED = "its process was killed, or the machine stopped; start the same command again"
_DEPTH = 4  # folders between one that was given and a run
_FRESH = 1.0  # seconds for which a scan of the folders is good
_FOLD = re.compile(r"fold_(\d+)")


@dataclass(frozen=True)
class Fold:
    """A fold: its number, its state, its result or the scores of its best epoch so far.

    `curve` is the macro-F1 of each epoch, of folds without a result; `now` its `progress.json` while it trains, and
    `reason` why it failed.
    """

    number: int
    state: State
    result: dict[str, Any] = field(default_factory=dict)
    curve: tuple[float, ...] = ()
    now: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def epochs(self) -> int:
        """The epochs that are done."""
        return int(self.result.get("epochs", len(self.curve)))


@dataclass(frozen=True)
class Run:
    """A run, a trial of a search, or a campaign, whose `folds` are those of its members. `key` is its path as the
    pages show it; `fault` says why it cannot be read."""

    key: str
    path: Path
    kind: Kind = "run"
    campaign: str = ""
    state: State = "not started"
    fault: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    deciding: dict[str, Any] = field(default_factory=dict)
    engine: str = ""
    folds: tuple[Fold, ...] = ()
    planned: int = 0
    split: str = ""
    changed: float = 0.0

    @property
    def done(self) -> list[Fold]:
        """The folds that have a result."""
        return [fold for fold in self.folds if fold.state == "finished"]

    @property
    def scored(self) -> list[Fold]:
        """The folds whose scores count: the finished ones, without any those that have an epoch."""
        return self.done or [fold for fold in self.folds if fold.result]

    def mean(self, metric: str) -> float:
        """Over the scored folds; NaN without one."""
        values = [float(fold.result[metric]) for fold in self.scored]
        return float(np.mean(values)) if values else float("nan")

    def spread(self, metric: str) -> float:
        """Standard deviation over the scored folds (n - 1); NaN below two."""
        values = [float(fold.result[metric]) for fold in self.scored]
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")

    def when(self) -> str:
        """When a file of it was last written."""
        if not self.changed:
            return ""
        moment = datetime.fromtimestamp(self.changed)
        return moment.strftime("%d %b %H:%M" if moment.year == datetime.now().year else "%d %b %Y")

    def seconds(self) -> float:
        """Training time of the finished folds together."""
        return float(sum(fold.result["seconds"] for fold in self.done))


class Runs:
    """All that lies below `roots`, by key. Safe to use from several threads."""

    def __init__(self, roots: Sequence[Path]):
        for root in roots:
            if not root.is_dir():
                raise CheckpointError(f"{root}: there is no such folder; give the one that holds your runs")
        self.roots, self._lock = list(roots), threading.Lock()
        self._parsed: dict[tuple[Path, str], tuple[tuple[int, int], Any]] = {}
        self._scan: tuple[float, dict[str, Run]] = (float("-inf"), {})

    def all(self) -> dict[str, Run]:
        """Runs, trials and campaigns as they are now, at most a second old."""
        with self._lock:
            if time.monotonic() - self._scan[0] > _FRESH:
                runs = {run.key: run for root in self.roots for run in self._below(root)}
                self._scan = (time.monotonic(), runs)
            return self._scan[1]

    def members(self, campaign: Run, kind: Kind = "run") -> list[Run]:
        """The members of a campaign, or its trials."""
        return [run for run in self.all().values() if run.campaign == campaign.key and run.kind == kind]

    def _below(self, root: Path) -> Iterator[Run]:
        names = [folder.resolve().name for folder in self.roots]
        name = root.resolve().name if names.count(root.resolve().name) == 1 else str(root)
        prefix = f"{of_path(name)}/" if len(self.roots) > 1 else ""
        for path in _run_folders(root, _DEPTH):
            inside = path.relative_to(root).as_posix()
            key = prefix + of_path(path.resolve().name if inside == "." else inside)
            if (path / load.CAMPAIGN).exists():
                yield from self._campaign(path, key)
            else:
                yield self._run(path, key)

    def _campaign(self, path: Path, key: str) -> Iterator[Run]:
        members = [self._run(run, f"{key}/{of_path(run.name)}", "run", key) for run in _runs(path.glob("members/*"))]
        trials = [
            self._run(run, f"{key}/{of_path(run.parent.name)}/{run.name}", "trial", key)
            for run in _runs(path.glob("tune/*/*"))
        ]
        at_work = [run.state for run in (*members, *trials) if run.state == "training"]
        planned, fault = 0, ""
        try:
            planned = len((self._read(path / load.CAMPAIGN, results.read_yaml) or {}).get("members") or [""])
        except Exception as error:
            fault = _line(error)
        ended = len(members) == planned and all(member.state == "finished" for member in members)
        yield Run(
            *(key, path, "campaign"),
            state=state.of_run(ended, [*at_work, *(member.state for member in members)]),
            fault=fault,
            folds=tuple(fold for member in members for fold in member.folds),
            planned=planned or len(members),
            changed=max((run.changed for run in (*members, *trials)), default=0.0),
        )
        yield from members
        yield from trials

    def _run(self, path: Path, key: str, kind: Kind = "run", campaign: str = "") -> Run:
        run = Run(key, path, kind, campaign)
        try:
            return self._readable(run)
        except Exception as error:  # whatever a half-written, half-copied or foreign folder holds
            return replace(run, fault=_line(error))

    def _readable(self, run: Run) -> Run:
        path = run.path
        config = self._read(path / run_dir.CONFIG, _settings)
        if config is None:
            raise CheckpointError(f"{run_dir.CONFIG} is missing")
        settings, deciding = config
        starts = self._read(path / "environment.json", _json) or [{"engine": ""}]
        numbers = sorted(int(match[1]) for entry in path.iterdir() if (match := _FOLD.fullmatch(entry.name)))
        folds = tuple(self._fold(path / f"fold_{k}", k) for k in numbers)
        finished = (path / run_dir.FINISHED).exists()
        finished |= run.kind == "trial" and any(fold.state == "finished" for fold in folds)
        planned = len(folds)
        if not finished:  # as far as it is known
            wanted = settings.get("folds.train")
            planned = len(wanted) if wanted else max(self._read(path / _FOLDS, _numbers) or 0, len(folds))
        changed = 0.0
        histories = (path / f"fold_{k}" / "history.jsonl" for k in numbers)
        for file in (path / run_dir.CONFIG, path / run_dir.FINISHED, *histories):
            with suppress(FileNotFoundError):
                changed = max(changed, file.stat().st_mtime)
        return replace(
            run,
            state=state.of_run(finished, [fold.state for fold in folds]),
            settings=settings,
            deciding=deciding,
            engine=starts[-1]["engine"],
            folds=folds,
            planned=planned,
            split=self._read(path / _FOLDS, leaderboard.split_digest) or "",
            changed=changed,
        )

    def _fold(self, path: Path, number: int) -> Fold:
        result = self._read(path / run_dir.RESULT, _result)
        if result is not None:
            return Fold(number, "finished", result)
        best, curve = self._read(path / "history.jsonl", _best_so_far) or ({}, ())
        failed = self._read(path / FAILED, results.read_yaml)
        now = path / run_dir.PROGRESS
        stopped: State = "interrupted" if curve or any(path.glob("step_*")) else "not started"
        so_far = Fold(number, stopped, best, curve)
        if state.lives(now):
            progress = self._read(now, _progress) or {}
            return replace(so_far, state="training" if curve or progress else "waiting", now=progress)
        if state.lives(path / run_dir.LOCK_OWNER):
            return replace(so_far, state="training" if curve else "waiting")
        reason = str(failed["reason"]) if failed else _KILLED if now.exists() else ""
        return replace(so_far, state="failed", reason=reason) if reason else so_far

    def _read(self, path: Path, parse: Callable[[Path], _Parsed]) -> _Parsed | None:
        """The parsed file, from memory where it has not changed; None where there is none.

        `CheckpointError` that names the file where it cannot be parsed."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        signature, key = (status.st_mtime_ns, status.st_size), (path, parse.__name__)
        known = self._parsed.get(key)
        if known is None or known[0] != signature:
            try:
                known = (signature, parse(path))
            except Exception as error:
                raise CheckpointError(f"{path.name} cannot be read: {_line(error)}") from error
            self._parsed[key] = known
        return known[1]


def _run_folders(path: Path, depth: int) -> Iterator[Path]:
    """Folders that are runs, campaigns, or look like a damaged run; links are not followed."""
    try:
        names = {entry.name: entry for entry in os.scandir(path)}
    except OSError:
        return
    if {load.RUN, load.CAMPAIGN} & names.keys() or any(map(_FOLD.fullmatch, names)):
        yield path
        return
    for name in sorted(names) if depth else ():
        if not name.startswith(".") and names[name].is_dir(follow_symlinks=False):
            yield from _run_folders(path / name, depth - 1)


def _runs(paths: Iterator[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_dir() and not path.is_symlink())


def _settings(config: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """All settings, and those that change what the run computes."""
    settings = leaderboard.settings(config)
    return settings, leaderboard.deciding(settings)


def _result(path: Path) -> dict[str, Any]:
    """What is shown of a `result.yaml`."""
    row = results.read_yaml(path)
    scores = {name: float(row[name]) for name in leaderboard.METRICS}
    return {**scores, "seconds": float(row["seconds"]), **{name: int(row[name]) for name in ("best_epoch", "epochs")}}


def _progress(path: Path) -> dict[str, Any]:
    """What is shown of a `progress.json`; nothing before the first update."""
    row, shown = _json(path), ("epoch", "update", "updates", "loss", "images_per_second", "seconds_left")
    return {name: row[name] for name in shown} if "update" in row else {}


def _best_so_far(history: Path) -> tuple[dict[str, Any], tuple[float, ...]]:
    """The scores of the best epoch so far, and the macro-F1 of each epoch."""
    rows = [json.loads(line) for line in history.read_text().splitlines()]
    best: dict[str, Any] = next((row for row in reversed(rows) if row.get("best")), {})
    scores = {**{name: best[name] for name in leaderboard.METRICS}, "best_epoch": int(best["epoch"])} if best else {}
    return scores, tuple(row["macro_f1"] for row in rows)


def _numbers(folds: Path) -> int:
    """How many folds a `folds.csv` has."""
    with folds.open(newline="") as stream:
        rows = csv.DictReader(stream)
        columns = [name for name in rows.fieldnames or () if re.fullmatch(r"fold(_\d+)?", name)]
        return len({row[name] for row in rows for name in columns} - {"-1"})


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _line(error: Exception) -> str:
    """The first line of an error, with its kind where the text alone says little."""
    text = next(iter(str(error).splitlines()), "")
    return text if isinstance(error, CheckpointError) else f"{type(error).__name__}: {text}"
