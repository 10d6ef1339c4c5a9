"""The plots and the page of an evaluation on labelled images: `plots/*.png` and `report.html` in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data.names import of_path
from infer.evaluation import files, scoring
from infer.evaluation.scoring import Evaluation, Labelled, Split
from infer.pages import figures, page, plots
from infer.pages.thumbnails import WORST, thumbnail
from infer.runner import OnBad, Runner

NAME = "report.html"
_BARS = 20


def evaluate(
    runner: Runner, data: Labelled | Path | str, split: Split | None, on_bad_image: OnBad, out: Path | None
) -> Evaluation:
    """`scoring.evaluate`, and all its files in the new folder `out` where one is given."""
    if out is not None:
        files.prepare(out)
    found = scoring.evaluate(runner, data, split, on_bad_image)
    if out is not None:
        files.write(out, found)
        write(found, out)
    return found


def write(found: Evaluation, folder: Path) -> list[Path]:
    """Write the confusion matrix, the reliability diagram and the page into `folder`; their paths."""
    names = [found.class_names[number] for number in found.shown]
    what = f"{found.split} split" if found.split != "all" else "all labelled images"
    made = {
        "confusion.png": plots.confusion_figure(found.confusion, names, f"Confusion matrix, {what}"),
        "reliability.png": plots.reliability_figure(found.reliability, found.ece, f"Reliability, {what}"),
    }
    (folder / "plots").mkdir(exist_ok=True)
    for name, figure in made.items():
        figure.savefig(folder / "plots" / name, dpi=120)
    bins = found.reliability._asdict()
    written = page.write(
        folder / NAME,
        "evaluation.html",
        title=of_path(f"Evaluation of {found.root.resolve().name or found.root}, {what}"),
        root=of_path(str(found.root)),
        found=found,
        what=what,
        classes=_classes(found),
        matrix=figures.matrix(found.confusion, tuple(names)),
        pairs=figures.pairs(found.confusion, tuple(names)),
        reliability=figures.bins({name: values.tolist() for name, values in bins.items()}),
        bars=figures.bars(_histogram(found)),
        mistakes=_mistakes(found),
        wrong=int((found.predicted != found.targets).sum()),
    )
    return [*(folder / "plots" / name for name in made), written]


def _classes(found: Evaluation) -> list[dict[str, Any]]:
    """The scores of each class, with the class that it is most often taken for."""
    wrong = found.confusion - np.diag(np.diag(found.confusion))
    taken = [found.per_class[row.argmax()].name if row.any() else "" for row in wrong]
    return [{**vars(one), "taken_for": other} for one, other in zip(found.per_class, taken, strict=True)]


def _histogram(found: Evaluation) -> dict[str, list[float]]:
    """How many predictions of each confidence are right, and how many are wrong."""
    edges = np.linspace(0, 1, _BARS + 1)
    confidence, right = found.probabilities.max(axis=1), found.predicted == found.targets
    counts = [np.histogram(confidence[which], edges)[0].tolist() for which in (right, ~right)]
    return {"edges": edges.tolist(), "right": counts[0], "wrong": counts[1]}


def _mistakes(found: Evaluation) -> list[dict[str, Any]]:
    """The most confident mistakes, with thumbnails."""
    here = np.arange(len(found.ids))
    confidence = found.probabilities[here, found.predicted]
    order = np.argsort(np.where(found.predicted != found.targets, -confidence, 1), kind="stable")
    worst = [row for row in order[:WORST].tolist() if found.predicted[row] != found.targets[row]]
    return [
        {
            "id": found.ids[row],
            "true": found.class_names[found.targets[row]],
            "predicted": found.class_names[found.predicted[row]],
            "probability": float(confidence[row]),
            "picture": thumbnail(found.paths[row]),
        }
        for row in worst
    ]
