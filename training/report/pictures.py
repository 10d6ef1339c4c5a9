"""The images of the page: thumbnails of what deserves a look, and where the network looked when it was wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from config import load
from config.errors import TandemError
from data import sources
from data.augment.transforms import EvalTransform
from data.decode.image import decode
from data.pixels import data_uri
from data.rng import philox
from ensemble.calibration.scaling import blocks
from infer.explain import gradcam
from infer.pages.thumbnails import WORST, small, thumbnail
from training.loop import metrics
from training.run import results


def paths(run: Path) -> dict[str, Path]:
    """The image files by id, those that are still there."""
    data = load.read(run / "config.yaml").data
    if data.root is None or not data.root.exists():
        return {}
    try:
        table = sources.load(data.model_copy(update={"on_bad_image": "skip"}))
    except TandemError:  # changed since: the page goes without its images
        return {}
    return {name: path for name, path in zip(table.ids, table.paths, strict=True) if path.exists()}


def mistakes(run: Path, path_of: dict[str, Path], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The most confident out-of-fold mistakes: ids, classes, probabilities, the fold that was wrong, a thumbnail."""
    mistaken = []
    for fold_answers in results.answers(run):
        predicted = metrics.predictions(fold_answers.logits)
        wrong = [
            i for i in np.flatnonzero(predicted != fold_answers.targets).tolist() if fold_answers.ids[i] in path_of
        ]
        for rows in blocks(len(wrong), fold_answers.logits.shape[1]):
            probabilities = softmax(fold_answers.logits[wrong[rows]].astype(np.float64), axis=1).max(axis=1).tolist()
            mistaken += [
                (p, fold_answers, i, int(predicted[i])) for p, i in zip(probabilities, wrong[rows], strict=True)
            ]
    mistaken.sort(key=lambda row: row[0])
    hardest = {
        fold_answers.ids[i]: (p, fold_answers, i, predicted) for p, fold_answers, i, predicted in mistaken
    }  # once where folds are repeated
    mistaken = sorted(hardest.values(), key=lambda row: -row[0])
    return [
        {
            "id": fold_answers.ids[i],
            "true": names[fold_answers.targets[i]],
            "predicted": names[predicted],
            "class": predicted,
            "probability": probability,
            "fold": fold_answers.fold,
            "path": path_of[fold_answers.ids[i]],
            "picture": thumbnail(path_of[fold_answers.ids[i]]),
        }
        for probability, fold_answers, i, predicted in mistaken[:WORST]
    ]


def explain(rows: list[dict[str, Any]]) -> str:
    """Give each of the `mistakes` the picture `heat` of where its fold's network looked; else why there is none."""
    try:
        for fold in dict.fromkeys(row["fold"] for row in rows):
            mine = [row for row in rows if row["fold"] == fold]
            for row, picture in zip(mine, _heat(fold / "best", mine), strict=True):
                row["heat"] = picture
    except TandemError as error:  # no gradients, no framework, no memory: the page is worth having without them
        return str(error)
    return ""


def _heat(best: Path, rows: list[dict[str, Any]]) -> list[str]:
    explainer = gradcam.open(best)
    transform = EvalTransform(explainer.card.preprocessing)
    images = np.stack([transform(decode(row["path"]), philox(0, "report")) for row in rows])
    maps = explainer.heatmaps(images, [row["class"] for row in rows])
    return [data_uri(small(gradcam.overlay(image, heat))) for image, heat in zip(images, maps, strict=True)]
