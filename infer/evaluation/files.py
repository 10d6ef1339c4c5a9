"""The files of an evaluation: metrics.json, confusion.csv, and the predictions as .csv and .npz."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from config.errors import ConfigError
from data import csvfile
from data.names import of_path
from infer.evaluation.scoring import Evaluation

METRICS, CONFUSION, ROWS, ARRAYS = "metrics.json", "confusion.csv", "predictions.csv", "predictions.npz"
_VERSION = 1


def prepare(folder: Path) -> None:
    """Make the new folder of an evaluation; `ConfigError` where it holds anything or cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = any(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be made a folder ({error.strerror}); give another --out") from error
    if held:
        raise ConfigError(f"--out {folder}: is not empty, and nothing is overwritten; give another --out")


def write(folder: Path, evaluation: Evaluation) -> list[Path]:
    """Write all files into `folder`, new or empty; their paths."""
    prepare(folder)
    names = evaluation.class_names
    (folder / METRICS).write_text(
        json.dumps(metrics(evaluation), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    counts = [
        (names[evaluation.shown[true]], names[evaluation.shown[predicted]], int(evaluation.confusion[true, predicted]))
        for true, predicted in np.argwhere(evaluation.confusion)
    ]
    csvfile.write(folder / CONFUSION, ("target", "predicted", "images"), counts)
    here = np.arange(len(evaluation.ids))
    columns = (
        evaluation.ids,
        (names[number] for number in evaluation.targets),
        (names[number] for number in evaluation.predicted),
        (f"{value:.9g}" for value in evaluation.probabilities[here, evaluation.predicted]),
        (f"{value:.9g}" for value in evaluation.probabilities[here, evaluation.targets]),
    )
    header = ("ID", "target", "predicted", "probability", "target_probability")
    csvfile.write(folder / ROWS, header, list(zip(*columns, strict=True)))
    with (folder / ARRAYS).open("xb") as file:
        np.savez(
            file,
            allow_pickle=False,
            ids=np.array(evaluation.ids),
            class_names=np.array(names),
            probabilities=evaluation.probabilities,
            targets=evaluation.targets,
            predicted=evaluation.predicted,
        )
    return [folder / name for name in (METRICS, CONFUSION, ROWS, ARRAYS)]


def metrics(evaluation: Evaluation) -> dict[str, Any]:
    """The content of `metrics.json`: all scores and their data set, without single predictions."""
    same = ("accuracy", "macro_f1", "log_loss", "ece", "brier", "top5", "temperature")
    bins = evaluation.reliability
    return {
        "version": _VERSION,
        "members": evaluation.name,
        "views": list(evaluation.views),
        "data": of_path(str(evaluation.root)),
        "split": evaluation.split,
        "images": len(evaluation.ids),
        **{name: getattr(evaluation, name) for name in same},
        "intervals": {name: interval._asdict() for name, interval in evaluation.intervals.items()},
        "unreadable": dict(evaluation.unreadable),
        "truncated": list(evaluation.truncated),
        "notes": list(evaluation.notes),
        "each_member": [asdict(member) for member in evaluation.members],
        "per_class": [asdict(member) for member in evaluation.per_class],
        "reliability": {
            "images": bins.images.tolist(),
            "confidence": [None if np.isnan(v) else v for v in bins.confidence.tolist()],
            "accuracy": [None if np.isnan(v) else v for v in bins.accuracy.tolist()],
        },
        "seconds": round(evaluation.seconds, 3),
    }
