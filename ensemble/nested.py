"""Nested evaluation: everything is fitted again without each fold, and scored on that fold.

So no printed figure comes from rows that its weights, temperatures, maps or thresholds were fitted on. The folds are
those that the members were trained with, so that groups and near-duplicates stay together; a single hold-out is split
into five at random.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.rng import philox
from ensemble import decision, ensemble_fit, scores
from ensemble.decision import Rule
from ensemble.ensemble_fit import Kind, Plan, Predictions
from ensemble.oof.oof_table import Table
from ensemble.scores import Ints, Score

_PARTS = 5  # of a table that has one fold only
_FEWEST = 2  # rows on either side


@dataclass(frozen=True)
class Nested:
    """Predictions of all rows by fits without them.

    `plain` float32 `[N, C]` are the predictions with the same weights but no temperature or map; `predictions` those
    after each calibration; `labels` int64 `[N]` those of each rule on the selected calibration. `split` `[N]` is the
    number of the nested fold of each row.
    """

    plain: Predictions
    predictions: dict[Kind, Predictions]
    labels: dict[Rule, Ints]
    split: Ints
    kind: Kind
    rule: Rule | None
    before: Score
    after: dict[Kind, Score]
    ruled: dict[Rule, Score]

    @property
    def selected(self) -> Predictions:
        """The predictions of the selected calibration."""
        return self.predictions[self.kind]

    @property
    def predicted(self) -> Ints:
        """The labels by the selected rule."""
        return self.labels[self.rule] if self.rule else decision.labels(self.selected, None)


def evaluate(table: Table, plan: Plan) -> Nested:
    """Fit `plan` without each fold in turn and predict that fold."""
    shape, split = (len(table.ids), table.classes), parts(table, plan.seed)
    plain = np.zeros(shape, np.float32)
    predictions: dict[Kind, Predictions] = {kind: np.zeros(shape, np.float32) for kind in plan.candidates()}
    labels: dict[tuple[Kind, Rule], Ints] = {
        (kind, rule): np.zeros(shape[0], np.int64) for kind in plan.candidates() for rule in plan.rules
    }
    for number in range(int(split.max(initial=0)) + 1):
        unseen = np.flatnonzero(split == number)
        rest = np.flatnonzero(split != number)
        known, new = table.take(rest if len(rest) else unseen), table.take(unseen)
        pool = ensemble_fit.fit_pool(known, plan)
        logs, targets, fresh = ensemble_fit.mix_pool(known, pool), known.targets, ensemble_fit.mix_pool(new, pool)
        uncalibrated = pool._replace(temperatures=(1.0,) * len(pool.temperatures))
        plain[unseen] = ensemble_fit.mix_pool(new, uncalibrated) if pool.stack is None else fresh
        for kind in plan.candidates():
            step = ensemble_fit.fit_step(kind, logs, targets, plan.clip)
            predictions[kind][unseen] = step.apply(fresh)
            for rule in plan.rules:
                shifts = decision.fit(rule, step.apply(logs), targets)
                labels[kind, rule][unseen] = decision.labels(predictions[kind][unseen], shifts)
    return _select(table, plan, plain, predictions, labels, split)


def parts(table: Table, seed: int) -> Ints:
    """The nested fold `[N]` of each row: its fold, or one of five random ones where there is one fold only."""
    _, split = np.unique(table.fold, return_inverse=True)
    if split.max(initial=0) > 0 or len(split) < _FEWEST:
        return np.asarray(split)
    drawn = philox(seed, "parts of the nested fit").permutation(len(split))
    return np.asarray(drawn % min(_PARTS, len(split)))


def _select(
    table: Table,
    plan: Plan,
    plain: Predictions,
    predictions: dict[Kind, Predictions],
    labels: dict[tuple[Kind, Rule], Ints],
    split: Ints,
) -> Nested:
    """Select the calibration and the rule; all scores."""
    after = {
        kind: scores.score("no calibration" if kind == "none" else kind, rows, table.targets)
        for kind, rows in predictions.items()
    }
    kind = min(after, key=lambda name: after[name].log_loss)
    mine = {rule: labels[kind, rule] for rule in plan.rules}
    ruled = {
        rule: scores.score(f"labels by {rule}", predictions[kind], table.targets, mine[rule]) for rule in plan.rules
    }
    best = max(ruled, key=lambda name: ruled[name].macro_f1, default=None)
    rule = best if best and ruled[best].macro_f1 > after[kind].macro_f1 else None
    before = scores.score("uncalibrated", plain, table.targets)
    return Nested(plain, predictions, mine, split, kind, rule, before, after, ruled)
