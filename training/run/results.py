"""Files of a run that plots, reports, trackers and the leaderboard read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from config.errors import CheckpointError
from config.places import atomic_path, atomic_write
from ensemble.oof import npz, repeats
from ensemble.oof.oof_table import Gathered
from models.card import Card, read_card

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # eight times as fast, where PyYAML was built with it


class FoldPredictions(NamedTuple):
    """One finished fold's OOF predictions: ids, logits float32 `[N, C]`, targets int64 `[N]`."""

    fold: Path
    ids: list[str]
    logits: NDArray[np.float32]
    targets: NDArray[np.int64]


def oof(run: Path) -> tuple[list[str], Gathered, NDArray[np.int64]]:
    """Ids, logits `[N, C]` and targets `[N]` of all finished folds' validation images, each once. The logits stay in
    the folds' files and are read some rows at a time."""
    files = [npz.read(path) for path in sorted(run.glob("fold_*/oof.npz")) if _is_finished(path.parent)]
    if not files:
        raise CheckpointError(f"{run}: no fold_*/oof.npz; train it first with --resume {run}")
    ids, rows = repeats.occurrences(np.concatenate([file["ids"] for file in files]))
    fold = np.repeat(np.arange(len(files)), [len(file["ids"]) for file in files])
    row_in_fold = np.concatenate([np.arange(len(file["ids"])) for file in files])
    targets = np.concatenate([file["targets"] for file in files])[rows[0]]
    logits = [file["logits"] for file in files]
    return ids.tolist(), Gathered(logits, np.where(rows >= 0, fold[rows], -1), row_in_fold[rows]), targets


def card(run: Path) -> Card:
    """The card of the run's best checkpoints; its `class_names` name the columns of the logits."""
    for path in sorted(run.glob("fold_*/best/model.safetensors")):
        return read_card(path.parent)
    raise CheckpointError(f"{run}: no fold_*/best; train it first with --resume {run}")


def fold_results(run: Path) -> dict[str, Any]:
    """`fold_results.yaml` of a finished run."""
    path = run / "fold_results.yaml"
    if not path.exists():
        raise CheckpointError(f"{path} is missing: the run is not finished; go on with --resume {run}")
    return dict(yaml.safe_load(path.read_text()))


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file of a run; `yaml.YAMLError` where it is none."""
    return yaml.load(path.read_bytes(), Loader=_LOADER)


def starts(run: Path) -> list[dict[str, Any]]:
    """`environment.json`: machine, versions and command of each start of the run, in order; empty where none began."""
    path = run / "environment.json"
    return list(json.loads(path.read_text())) if path.exists() else []


def fold_files(run: Path, name: str) -> list[Path]:
    """The files `fold_K/NAME` of a run, in the order of the folds' numbers."""
    return sorted(run.glob(f"fold_*/{name}"), key=lambda path: (len(path.parent.name), path.parent.name))


def history(fold: Path) -> list[dict[str, str]]:
    """The rows of a fold's `history.csv`, one an epoch, with cells as text; empty where there is none."""
    path = fold / "history.csv"
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def epochs(fold: Path) -> list[dict[str, Any]]:
    """The rows of a fold's `history.jsonl`, one an epoch, with the machine's figures; empty where there is none."""
    path = fold / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_epochs(fold: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put rows in the place of a fold's `history.jsonl`, in one step."""
    atomic_write(fold / "history.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def answers(run: Path) -> Iterator[FoldPredictions]:
    """The OOF predictions of each finished fold, one fold after the other."""
    for path in sorted(run.glob("fold_*/oof.npz")):
        if _is_finished(path.parent):
            file = npz.read(path)
            yield FoldPredictions(path.parent, file["ids"].tolist(), file["logits"], file["targets"])


def _is_finished(fold: Path) -> bool:
    return (fold / "result.yaml").exists()  # else another process is still training it


def suspects(run: Path) -> list[dict[str, Any]]:
    """The images whose labels hard-sample mining suspects: `id`, `target`, mean `loss` and the number of `folds` that
    suspect them; those of most folds and highest loss first. Empty where nothing was mined."""
    losses: dict[tuple[str, str], list[float]] = {}
    for path in sorted(run.glob("fold_*/suspects.csv")):
        with path.open(newline="") as stream:
            for row in csv.DictReader(stream):
                losses.setdefault((row["id"], row["target"]), []).append(float(row["loss"]))
    rows = [
        {"id": name, "target": target, "loss": sum(each) / len(each), "folds": len(each)}
        for (name, target), each in losses.items()
    ]
    return sorted(rows, key=lambda row: (-row["folds"], -row["loss"]))


def class_counts(run: Path) -> dict[str, int]:
    """How many images of each class `folds.csv` holds."""
    counts: dict[str, int] = {}
    with (run / "folds.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            counts[row["target"]] = counts.get(row["target"], 0) + 1
    return counts


def write_suspects(fold: Path, rows: Sequence[tuple[str, str, float]]) -> None:
    """Write `suspects.csv`: id, target and mean loss of training images whose labels hard-sample mining suspects."""
    with atomic_path(fold / "suspects.csv") as unfinished, unfinished.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("id", "target", "loss"))
        writer.writerows((name, target, f"{loss:.6f}") for name, target, loss in rows)
