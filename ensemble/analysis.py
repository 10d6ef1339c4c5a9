"""Analyses nested out-of-fold predictions, as data for the report and as text for a terminal.

Confidence histogram, most confident mistakes, most confused pairs, agreement between runs, reliability before and after
calibration, each fold's scores, and the expected score with its interval. `reliability` draws the diagram.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble import scores
from ensemble.calibration import scaling
from ensemble.ensemble_fit import Plan
from ensemble.nested import Nested
from ensemble.oof.oof_table import Table
from ensemble.scores import METRICS, Interval, Ints, Score

_SHOWN = 20
_PRINTED = 5
_HISTOGRAM = 20
_VERSION = 1


@dataclass(frozen=True)
class Analysis:
    """JSON-ready fields; probabilities in [0, 1], log loss in nats.

    `expected` maps each metric to its value and 95% interval over resampled images; `folds` are each fold's scores.
    `agreement` `[G, G]` is the share of common images for which two runs predict the same, None without any.
    """

    runs: list[str]
    scores: list[dict[str, Any]]
    before: dict[str, Any]
    after: list[dict[str, Any]]
    rules: list[dict[str, Any]]
    calibration: str
    rule: str | None
    metric: str
    expected: dict[str, Interval]
    folds: list[dict[str, Any]]
    histogram: dict[str, list[float]]
    mistakes: list[dict[str, Any]]
    confused: list[dict[str, Any]]
    agreement: list[list[float | None]]
    reliability: dict[str, dict[str, list[float | None]]]

    def to_json(self, notes: Sequence[str] = ()) -> str:
        """The analysis as JSON, with the fit's `notes`."""
        document = {"version": _VERSION, **asdict(self), "notes": list(notes)}
        document["expected"] = {name: score._asdict() for name, score in self.expected.items()}
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"

    def text(self) -> str:
        """A summary, several lines."""
        lines = ["expected on new images, 95% interval by resampling the images (each answered by one fold's members):"]
        for name, score in self.expected.items():
            spread = np.std([fold[name] for fold in self.folds], ddof=1) if len(self.folds) > 1 else float("nan")
            folds = f"; folds {spread:.4f} apart (standard deviation)" if len(self.folds) > 1 else ""
            lines.append(f"  {name:<9} {score.value:.4f} ({score.low:.4f} to {score.high:.4f}){folds}")
        lines += self._pairs()
        if self.mistakes:
            lines.append("most confident mistakes:")
            lines += [
                f"  {row['id']}: {row['true']} taken for {row['predicted']} ({row['probability']:.3f})"
                for row in self.mistakes[:_PRINTED]
            ]
        if self.confused:
            pairs = [f"{r['true']} for {r['predicted']} ({r['count']} of {r['of']})" for r in self.confused[:_PRINTED]]
            lines.append(f"most confused: {', '.join(pairs)}")
        return "\n".join(lines)

    def _pairs(self) -> list[str]:
        pairs = [
            (share, f"{self.runs[a]} and {self.runs[b]} {share:.1%}")
            for a, row in enumerate(self.agreement)
            for b, share in enumerate(row)
            if a < b and share is not None
        ]
        if not pairs:
            return []
        least, most = min(pairs)[1], max(pairs)[1]
        return [f"agreement: {least}" if len(pairs) == 1 else f"agreement: least {least}, most {most}"]


def analyse(
    table: Table,
    evaluation: Nested,
    runs: Sequence[str],
    class_names: Sequence[str],
    plan: Plan,
    alone: Sequence[Score],
) -> Analysis:
    """Analyse nested predictions; `alone` are the scores to list beside them."""
    judged = scores.judge(evaluation.selected, table.targets)._replace(predicted=evaluation.predicted)
    return Analysis(
        runs=list(runs),
        scores=[asdict(score) for score in alone],
        before=asdict(evaluation.before),
        after=[asdict(score) for score in evaluation.after.values()],
        rules=[asdict(score) for score in evaluation.ruled.values()],
        calibration=evaluation.kind,
        rule=evaluation.rule,
        metric=plan.metric,
        expected={name: scores.interval(name, judged, table.targets, table.classes, plan.seed) for name in METRICS},
        folds=_folds(table, evaluation),
        histogram=histogram(judged.confidence, judged.predicted == table.targets),
        mistakes=_mistakes(table, judged, class_names),
        confused=_confused(judged.predicted, table.targets, class_names),
        agreement=_agreement(table),
        reliability={"before": _bins(evaluation.plain, table), "after": _bins(evaluation.selected, table)},
    )


def _folds(table: Table, evaluation: Nested) -> list[dict[str, Any]]:
    rows = []
    for number in range(int(evaluation.split.max(initial=0)) + 1):
        mine = evaluation.split == number
        name = f"fold {table.fold[mine][0]}" if len(np.unique(table.fold)) > 1 else f"part {number}"
        score = scores.score(name, evaluation.selected[mine], table.targets[mine], evaluation.predicted[mine])
        rows.append(asdict(score))
    return rows


def histogram(confidence: NDArray[np.floating], correct: NDArray[np.bool_]) -> dict[str, list[float]]:
    """The numbers of right and wrong predictions with a top-1 probability between each two `edges`."""
    edges = np.linspace(0, 1, _HISTOGRAM + 1)
    right, wrong = (np.histogram(confidence[which], edges)[0] for which in (correct, ~correct))
    return {"edges": edges.tolist(), "right": right.tolist(), "wrong": wrong.tolist()}


def _mistakes(table: Table, judged: scores.Judged, class_names: Sequence[str]) -> list[dict[str, Any]]:
    wrong = np.flatnonzero(judged.predicted != table.targets)
    wrong = wrong[np.argsort(-judged.confidence[wrong], kind="stable")][:_SHOWN]
    return [
        {
            "id": str(table.ids[i]),
            "true": class_names[table.targets[i]],
            "predicted": class_names[judged.predicted[i]],
            "probability": float(judged.confidence[i]),
            "probability_of_true": float(np.exp(judged.true[i])),
            "fold": int(table.fold[i]),
        }
        for i in wrong
    ]


def _confused(predicted: Ints, targets: Ints, class_names: Sequence[str]) -> list[dict[str, Any]]:
    wrong = predicted != targets
    pairs, counts = np.unique(np.stack([targets[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    images = np.bincount(targets, minlength=len(class_names))
    order = np.argsort(-counts, kind="stable")[:_SHOWN]
    return [
        {
            "true": class_names[pairs[i, 0]],
            "predicted": class_names[pairs[i, 1]],
            "count": int(counts[i]),
            "of": int(images[pairs[i, 0]]),
        }
        for i in order
    ]


def _agreement(table: Table) -> list[list[float | None]]:
    predictions = []
    for logits, present in zip(table.logits, table.present, strict=True):
        best = np.concatenate([logits[rows].argmax(axis=1) for rows in scaling.blocks(*logits.shape)])
        predictions.append(np.where(present, best, -1))

    def share(left: Ints, right: Ints) -> float | None:
        both = (left >= 0) & (right >= 0)
        return float((left[both] == right[both]).mean()) if both.any() else None

    return [[share(left, right) for right in predictions] for left in predictions]


def _bins(predictions: NDArray[np.float32], table: Table) -> dict[str, list[float | None]]:
    judged = scores.judge(predictions, table.targets)
    bins = scaling.reliability(judged.confidence, judged.predicted == table.targets)
    return {name: [None if np.isnan(x) else float(x) for x in column] for name, column in bins._asdict().items()}
