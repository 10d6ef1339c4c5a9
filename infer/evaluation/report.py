"""The plots and the page of an evaluation on labelled images: `plots/*.png` and `report.html` in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data.names import of_path
from ensemble import analysis
from infer.evaluation import files, scoring
from infer.evaluation.scoring import Evaluation, Labelled, Split
from infer.pages import figures, page, plots
from infer.pages.thumbnails import WORST, thumbnail
from infer.runner import OnBad, Runner

NAME = "report.html"


def evaluate(
    runner: Runner, data: Labelled | Path | str, split: Split | None, on_bad_image: OnBad, out: Path | None
) -> Evaluation:
    """`scoring.evaluate`, and all its files in the new folder `out` where one is given."""
    if out is not None:
        files.prepare(out)
    evaluation = scoring.evaluate(runner, data, split, on_bad_image)
    if out is not None:
        files.write(out, evaluation)
        write(evaluation, out)
    return evaluation


def write(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write the confusion matrix, the reliability diagram and the page into `folder`; their paths."""
    names = [evaluation.class_names[number] for number in evaluation.shown]
    what = f"{evaluation.split} split" if evaluation.split != "all" else "all labelled images"
    plot_files = {
        "confusion.png": plots.confusion_figure(evaluation.confusion, names, f"Confusion matrix, {what}"),
        "reliability.png": plots.reliability_figure(evaluation.reliability, evaluation.ece, f"Reliability, {what}"),
    }
    confused = evaluation.confusion - np.diag(np.diag(evaluation.confusion))
    classes = [  # with the class that each is most often taken for
        {**vars(score), "taken_for": evaluation.per_class[row.argmax()].name if row.any() else ""}
        for score, row in zip(evaluation.per_class, confused, strict=True)
    ]
    (folder / "plots").mkdir(exist_ok=True)
    for name, figure in plot_files.items():
        figure.savefig(folder / "plots" / name, dpi=120)
    bins, right = evaluation.reliability._asdict(), evaluation.predicted == evaluation.targets
    written = page.write(
        folder / NAME,
        "evaluation.html",
        title=of_path(f"Evaluation of {evaluation.root.resolve().name or evaluation.root}, {what}"),
        root=of_path(str(evaluation.root)),
        found=evaluation,
        what=what,
        classes=classes,
        matrix=figures.matrix(evaluation.confusion, tuple(names)),
        pairs=figures.pairs(evaluation.confusion, tuple(names)),
        reliability=figures.bins({name: values.tolist() for name, values in bins.items()}),
        bars=figures.bars(analysis.histogram(evaluation.probabilities.max(axis=1), right)),
        mistakes=_mistakes(evaluation),
        wrong=int((~right).sum()),
    )
    return [*(folder / "plots" / name for name in plot_files), written]


def _mistakes(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The most confident mistakes, with thumbnails."""
    confidence = evaluation.probabilities[np.arange(len(evaluation.ids)), evaluation.predicted]
    order = np.argsort(np.where(evaluation.predicted != evaluation.targets, -confidence, 1), kind="stable")
    worst = [row for row in order[:WORST].tolist() if evaluation.predicted[row] != evaluation.targets[row]]
    return [
        {
            "id": evaluation.ids[row],
            "true": evaluation.class_names[evaluation.targets[row]],
            "predicted": evaluation.class_names[evaluation.predicted[row]],
            "probability": float(confidence[row]),
            "picture": thumbnail(evaluation.paths[row]),
        }
        for row in worst
    ]
