"""`report.html`: one self-contained page about one or more runs, and the ensemble made of them. Needs no network."""

from __future__ import annotations

import base64
import csv
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import yaml
from scipy.special import softmax
from sklearn.metrics import precision_recall_fscore_support

from config import load
from data import index
from data.decode import decode
from training import results

_TEMPLATES = Path(__file__).parent / "templates"
_WORST = 12
_THUMBNAIL = 96


def write(runs: list[Path], out: Path, ensemble: Path | None = None, submission: Path | None = None) -> Path:
    """Write the page about finished `runs`; with an ensemble file and a submission, about them too."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html").render(
        title=" + ".join(run.name for run in runs),
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
        runs=[_run(run) for run in runs],
        ensemble=yaml.safe_load(ensemble.read_text()) if ensemble else None,
        submission=_submission(submission) if submission else None,
    )
    partial = out.with_suffix(".partial")
    partial.write_text(page)
    partial.replace(out)
    return out


def _run(run: Path) -> dict[str, Any]:
    summary = results.fold_results(run)
    ids, logits, targets = results.oof(run)
    names = results.class_names(run)
    environment = json.loads((run / "environment.json").read_text())
    return {
        "name": run.name,
        "path": str(run),
        "summary": summary,
        "pictures": [_picture(path) for path in sorted((run / "plots").glob("*.png"), reverse=True)],
        "classes": _classes(logits, targets, names),
        "mistakes": _mistakes(run, ids, logits, targets, names),
        "suspects": _suspects(run),
        "config": (run / "config.yaml").read_text(),
        "environment": environment[-1],
    }


def _classes(logits: np.ndarray, targets: np.ndarray, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row a class: support, precision, recall and F1 of the out-of-fold predictions."""
    columns = precision_recall_fscore_support(
        targets, logits.argmax(axis=1), labels=np.arange(len(names)), zero_division=0
    )
    keys = ("precision", "recall", "f1", "support")
    return [{"name": name, **dict(zip(keys, row, strict=True))} for name, *row in zip(names, *columns, strict=True)]


def _mistakes(
    run: Path, ids: list[str], logits: np.ndarray, targets: np.ndarray, names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The most confident out-of-fold mistakes, with a thumbnail where the image is still there."""
    probabilities = softmax(logits.astype(np.float64), axis=1)
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != targets)
    wrong = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:_WORST]
    if not len(wrong):
        return []
    path_of = _paths(run)
    return [
        {
            "id": ids[i],
            "true": names[targets[i]],
            "predicted": names[predicted[i]],
            "probability": float(probabilities[i, predicted[i]]),
            "picture": _thumbnail(path_of[ids[i]]),
        }
        for i in wrong
        if ids[i] in path_of
    ]


def _suspects(run: Path) -> list[dict[str, Any]]:
    """The first of the labels worth a look, with a thumbnail where the image is still there."""
    rows = results.suspects(run)[:_WORST]
    path_of = _paths(run) if rows else {}
    return [{**row, "picture": _thumbnail(path_of[row["id"]])} for row in rows if row["id"] in path_of]


def _paths(run: Path) -> dict[str, Path]:
    """The image files by id, those that are still there; none where the data set is gone."""
    data = load.read(run / "config.yaml").data
    if data.root is None or not data.root.exists():
        return {}
    table = index.load(data.root, data.id_column, data.target_column, keep_missing=True)
    return {name: path for name, path in zip(table.ids, table.paths, strict=True) if path.exists()}


def _submission(path: Path) -> dict[str, Any]:
    """Name, rows and class distribution of a label submission."""
    with path.open(newline="") as stream:
        rows = list(csv.reader(stream))[1:]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row[-1]] = counts.get(row[-1], 0) + 1
    return {"name": path.name, "rows": len(rows), "counts": dict(sorted(counts.items()))}


def _thumbnail(path: Path) -> str:
    image = decode(path)
    scale = _THUMBNAIL / max(image.shape[:2])
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode() if ok else ""


def _picture(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
