"""The images of the page: thumbnails of mistakes, and Grad-CAM pictures of where the network looked."""

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
    for oof in results.answers(run):
        predicted = metrics.predictions(oof.logits)
        wrong = [i for i in np.flatnonzero(predicted != oof.targets).tolist() if oof.ids[i] in path_of]
        for rows in blocks(len(wrong), oof.logits.shape[1]):
            probabilities = softmax(oof.logits[wrong[rows]].astype(np.float64), axis=1).max(axis=1).tolist()
            mistaken += [(p, oof, i, int(predicted[i])) for p, i in zip(probabilities, wrong[rows], strict=True)]
    mistaken.sort(key=lambda row: row[0])
    hardest = {oof.ids[i]: (p, oof, i, label) for p, oof, i, label in mistaken}  # once where folds are repeated
    return [
        {
            "id": oof.ids[i],
            "true": names[oof.targets[i]],
            "predicted": names[label],
            "class": label,
            "probability": probability,
            "fold": oof.fold,
            "path": path_of[oof.ids[i]],
            "picture": thumbnail(path_of[oof.ids[i]]),
        }
        for probability, oof, i, label in sorted(hardest.values(), key=lambda row: -row[0])[:WORST]
    ]


def explain(rows: list[dict[str, Any]]) -> str:
    """Give each of the `mistakes` the picture `heat` of where its fold's network looked; else why there is none."""
    try:
        for fold in dict.fromkeys(row["fold"] for row in rows):
            explainer, mine = gradcam.open(fold / "best"), [row for row in rows if row["fold"] == fold]
            transform = EvalTransform(explainer.card.preprocessing)
            images = [transform(decode(row["path"]), philox(0, "report")) for row in mine]
            maps = explainer.heatmaps(np.stack(images), [row["class"] for row in mine])
            for row, image, heat in zip(mine, images, maps, strict=True):
                row["heat"] = data_uri(small(gradcam.overlay(image, heat)))
    except TandemError as error:  # no gradients, no framework, no memory: the page is worth having without them
        return str(error)
    return ""
