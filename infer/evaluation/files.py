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


def write(folder: Path, found: Evaluation) -> list[Path]:
    """Write all files into `folder`, new or empty; their paths."""
    prepare(folder)
    names = found.class_names
    (folder / METRICS).write_text(json.dumps(metrics(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    counts = [
        (names[found.shown[true]], names[found.shown[said]], int(found.confusion[true, said]))
        for true, said in np.argwhere(found.confusion)
    ]
    csvfile.write(folder / CONFUSION, ("target", "predicted", "images"), counts)
    here = np.arange(len(found.ids))
    columns = (
        found.ids,
        (names[number] for number in found.targets),
        (names[number] for number in found.predicted),
        (f"{value:.9g}" for value in found.probabilities[here, found.predicted]),
        (f"{value:.9g}" for value in found.probabilities[here, found.targets]),
    )
    header = ("ID", "target", "predicted", "probability", "target_probability")
    csvfile.write(folder / ROWS, header, list(zip(*columns, strict=True)))
    with (folder / ARRAYS).open("xb") as file:
        np.savez(
            file,
            allow_pickle=False,
            ids=np.array(found.ids),
            class_names=np.array(names),
            probabilities=found.probabilities,
            targets=found.targets,
            predicted=found.predicted,
        )
    return [folder / name for name in (METRICS, CONFUSION, ROWS, ARRAYS)]


def metrics(found: Evaluation) -> dict[str, Any]:
    """What `metrics.json` holds: all scores and what they are of, without the single predictions."""
    same = ("accuracy", "macro_f1", "log_loss", "ece", "brier", "top5", "temperature")
    bins = found.reliability
    return {
        "version": _VERSION,
        "members": found.name,
        "views": list(found.views),
        "data": of_path(str(found.root)),
        "split": found.split,
        "images": len(found.ids),
        **{name: getattr(found, name) for name in same},
        "intervals": {name: interval._asdict() for name, interval in found.intervals.items()},
        "unreadable": dict(found.unreadable),
        "truncated": list(found.truncated),
        "notes": list(found.notes),
        "each_member": [asdict(one) for one in found.members],
        "per_class": [asdict(one) for one in found.per_class],
        "reliability": {
            "images": bins.images.tolist(),
            "confidence": [None if np.isnan(v) else v for v in bins.confidence.tolist()],
            "accuracy": [None if np.isnan(v) else v for v in bins.accuracy.tolist()],
        },
        "seconds": round(found.seconds, 3),
    }
