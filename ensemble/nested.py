"""Nested evaluation: all that is fitted is fitted anew without each fold, and scored on that fold.

So no printed figure comes from rows that its weights, temperatures, maps or thresholds have seen. The folds are those
that the members were trained with, so that groups and near-duplicates stay together; a single hold-out is cut into five
parts at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.rng import philox
from ensemble import decision, ensemble_fit, scores
from ensemble.decision import Rule
from ensemble.ensemble_fit import Kind, Plan, Pool, Predictions
from ensemble.oof.oof_table import Table
from ensemble.scores import Ints, Score

_PARTS = 5  # of a table that has one fold only
_FEWEST = 2  # rows on either side


@dataclass(frozen=True)
class Nested:
    """What the rows were answered by fits that had not seen them.

    `plain` float32 `[N, C]` are the answers with the same weights but no temperature or map; `answers` those after each
    calibration; `labels` int64 `[N]` those of each rule on the answers of the calibration that was kept. `part` `[N]`
    numbers the parts.
    """

    plain: Predictions
    answers: dict[Kind, Predictions]
    labels: dict[Rule, Ints]
    part: Ints
    kind: Kind
    rule: Rule | None
    before: Score
    after: dict[Kind, Score]
    ruled: dict[Rule, Score]

    @property
    def kept(self) -> Predictions:
        """The answers of the calibration that was kept."""
        return self.answers[self.kind]

    @property
    def predicted(self) -> Ints:
        """The labels by the rule that was kept."""
        return self.labels[self.rule] if self.rule else decision.labels(self.kept, None)


def evaluate(table: Table, plan: Plan) -> Nested:
    """Fit `plan` without each part in turn and answer that part."""
    shape, part_of = (len(table.ids), table.classes), parts(table, plan.seed)
    plain = np.zeros(shape, np.float32)
    answers: dict[Kind, Predictions] = {kind: np.zeros(shape, np.float32) for kind in plan.candidates()}
    labels: dict[tuple[Kind, Rule], Ints] = {
        (kind, rule): np.zeros(shape[0], np.int64) for kind in plan.candidates() for rule in plan.rules
    }
    for fitted_rows, unseen in _splits(part_of):
        known, new = table.take(fitted_rows), table.take(unseen)
        pool = ensemble_fit.fit_pool(known, plan)
        logs, targets, fresh = ensemble_fit.mix_pool(known, pool), known.targets, ensemble_fit.mix_pool(new, pool)
        plain[unseen] = _uncalibrated(new, pool) if pool.stack is None else fresh
        for kind in plan.candidates():
            step = ensemble_fit.fit_step(kind, logs, targets, plan.clip)
            answers[kind][unseen] = step.apply(fresh)
            for rule in plan.rules:
                shifts = decision.fit(rule, step.apply(logs), targets)
                labels[kind, rule][unseen] = decision.labels(answers[kind][unseen], shifts)
    return _judged(table, plan, plain, answers, labels, part_of)


def parts(table: Table, seed: int) -> Ints:
    """The part `[N]` of each row: its fold, or one of five random ones where there is one fold only."""
    _, part_of = np.unique(table.fold, return_inverse=True)
    if part_of.max(initial=0) > 0 or len(part_of) < _FEWEST:
        return np.asarray(part_of)
    drawn = philox(seed, "parts of the nested fit").permutation(len(part_of))
    return np.asarray(drawn % min(_PARTS, len(part_of)))


def _splits(part_of: Ints) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows seen and unseen, for each part."""
    for number in range(int(part_of.max(initial=0)) + 1):
        unseen = part_of == number
        yield np.flatnonzero(~unseen) if not unseen.all() else np.flatnonzero(unseen), np.flatnonzero(unseen)


def _uncalibrated(table: Table, pool: Pool) -> Predictions:
    """The mixture with the same weights, each run as it came."""
    return ensemble_fit.mix_pool(table, pool._replace(temperatures=(1.0,) * len(pool.temperatures)))


def _judged(
    table: Table,
    plan: Plan,
    plain: Predictions,
    answers: dict[Kind, Predictions],
    labels: dict[tuple[Kind, Rule], Ints],
    part_of: Ints,
) -> Nested:
    """Which calibration and which rule are kept, and all scores."""
    after = {kind: scores.score(_named(kind), rows, table.targets) for kind, rows in answers.items()}
    kind = min(after, key=lambda name: after[name].log_loss)
    mine = {rule: labels[kind, rule] for rule in plan.rules}
    ruled = {rule: scores.score(f"labels by {rule}", answers[kind], table.targets, mine[rule]) for rule in plan.rules}
    best = max(ruled, key=lambda name: ruled[name].macro_f1, default=None)
    rule = best if best and ruled[best].macro_f1 > after[kind].macro_f1 else None
    before = scores.score("uncalibrated", plain, table.targets)
    return Nested(plain, answers, mine, part_of, kind, rule, before, after, ruled)


def _named(kind: Kind) -> str:
    return "no calibration" if kind == "none" else kind
