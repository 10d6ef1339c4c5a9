"""Weights of the runs: equal or given ones, the log-loss optimum on the simplex, or greedy selection.

Weights can be bagged (the mean over bootstrap samples of the images; greedy selection then also draws half of the runs,
as Caruana et al. 2004 do) and softened (moved towards equal ones). `stacking` has the stack in place of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from config.errors import ConfigError
from data.rng import philox
from ensemble.calibration import scaling
from ensemble.calibration.scaling import Floats
from ensemble.oof.oof_table import Table
from ensemble.scores import Metric, macro_f1, resampled
from ensemble.weighting import average, greedy
from ensemble.weighting.average import Combine

Method = Literal["convex", "equal", "fixed", "greedy", "stacking"]
FittedWeights = Callable[[Floats, NDArray[np.bool_]], Floats]

_NEGLIGIBLE = 1e-4  # a smaller weight is written as none
_FLOOR = 1e-9  # keeps an image defined that only runs of weight 0 answered
_TINY = float(np.finfo(float).tiny)
_PRECISE, _ROUGH = 1e-12, 1e-7  # of the loss; the rough one where each step reads all logits


@dataclass(frozen=True)
class WeightingRequest:
    """The method for weights; `given` are those of `fixed`, `rounds` those of `greedy`. A stack has equal ones."""

    method: Method = "convex"
    combine: Combine = "probabilities"
    metric: Metric = "log_loss"
    given: tuple[float, ...] = ()
    rounds: int = 50
    bags: int = 0
    soften: float = 0.0
    seed: int = 0


def check(request: WeightingRequest, runs: int) -> None:
    """`ConfigError` for a request that is impossible for so many runs."""
    if request.method == "fixed" and len(request.given) != runs:
        raise ConfigError(f"--weights: {len(request.given)} weights for {runs} runs; give one a run, in the same order")
    if request.method == "fixed" and (min(request.given) < 0 or sum(request.given) <= 0):
        raise ConfigError("--weights: they must not be negative, and one must be positive")
    if request.method == "convex" and request.combine == "ranks":
        raise ConfigError("--combine ranks: has no convex optimum; take --method greedy, equal or fixed")
    if request.method == "greedy" and request.combine != "probabilities" and request.metric == "log_loss":
        raise ConfigError(f"--method greedy for log_loss mixes probabilities only; take convex for {request.combine}")


def find(table: Table, temperatures: Sequence[float], request: WeightingRequest) -> Floats:
    """Weights of the runs, `[G]`, that sum to one. All but the convex ones of probabilities need rows that all runs
    predicted, and are fitted on those."""
    runs = len(table.logits)
    if request.method in ("equal", "stacking") or runs == 1:
        return np.full(runs, 1 / runs)
    if request.method == "fixed":
        return np.array(request.given) / sum(request.given)
    everywhere = request.method == "convex" and request.combine == "probabilities"
    learnt = table if everywhere else table.take(shared(table))
    fit = (_convex if request.method == "convex" else _greedy)(learnt, temperatures, request)
    weights = _bagged(fit, len(learnt.ids), runs, request)
    weights = np.where(weights < _NEGLIGIBLE, 0.0, weights)
    return np.asarray((1 - request.soften) * weights / weights.sum() + request.soften / runs)


def shared(table: Table) -> NDArray[np.bool_]:
    """bool `[N]`: the images that all runs predicted; `ConfigError` when there are none."""
    common = table.common()
    if not common.any():
        raise ConfigError(
            "the runs have no out-of-fold image in common, so they cannot be compared; fit runs with the same folds, or"
            " take --method equal or fixed"
        )
    return common


def optimum(true: Floats, present: NDArray[np.bool_], counts: Floats | None = None) -> Floats:
    """Weights `[G]` on the simplex that minimise the log loss of a weighted mean of probabilities.

    `true` `[N, G]` is the probability that run g gives to the right class; where `present` is False it is ignored and
    the other weights of that row are normalised. `counts` `[N]` says how often each row counts. Weights under 1e-4
    become 0.
    """
    share = np.full(len(true), 1 / len(true)) if counts is None else counts / counts.sum()
    shown = present.astype(np.float64)
    weighted = np.where(present, true, 0.0)

    def loss(weights: Floats) -> tuple[float, Floats]:
        raised = weights + _FLOOR
        mixed, total = weighted @ raised + _TINY, shown @ raised
        gradient = share @ (shown / total[:, None] - weighted / mixed[:, None])
        return float(share @ (np.log(total) - np.log(mixed))), gradient

    return _on_simplex(loss, true.shape[1], _PRECISE)


def _on_simplex(loss: Callable[[Floats], tuple[float, Floats]], runs: int, tolerance: float) -> Floats:
    if runs == 1:
        return np.ones(1)
    from scipy.optimize import LinearConstraint, minimize  # inference does not need it

    result = minimize(
        loss,
        np.full(runs, 1 / runs),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * runs,
        constraints=LinearConstraint(np.ones((1, runs)), 1, 1),
        options={"ftol": tolerance, "maxiter": 500},
    )
    weights = np.where(result.x < _NEGLIGIBLE, 0.0, result.x)
    return np.asarray(weights / weights.sum())


def _bagged(fit: FittedWeights, rows: int, runs: int, request: WeightingRequest) -> Floats:
    everyone = np.ones(runs, dtype=bool)
    if not request.bags:
        return fit(np.ones(rows), everyone)
    total = np.zeros(runs)
    for bag in range(request.bags):
        allowed = everyone
        if request.method == "greedy":
            drawn = philox(request.seed, "runs of a bag", bag).permutation(runs)[: (runs + 1) // 2]
            allowed = np.isin(np.arange(runs), drawn)
        total += fit(resampled(rows, request.seed, bag), allowed)
    return total / request.bags


def _convex(table: Table, temperatures: Sequence[float], request: WeightingRequest) -> FittedWeights:
    if request.combine == "logits":
        return lambda counts, _: _on_simplex(_log_linear(table, temperatures, counts), len(table.logits), _ROUGH)
    true = np.exp(target_logs(table, temperatures))
    present = np.stack(table.present, axis=1)
    return lambda counts, _: optimum(true, present, counts)


def target_logs(table: Table, temperatures: Sequence[float]) -> Floats:
    """float64 `[N, G]`: the log probability that each run gives to the right class."""
    logs = np.empty((len(table.ids), len(table.logits)))
    for block in scaling.blocks(len(table.ids), table.classes):
        targets = table.targets[block]
        for g, logits in enumerate(table.logits):
            rows = logits[block] / np.float32(temperatures[g])
            rows -= rows.max(axis=1, keepdims=True)
            right = rows[np.arange(len(rows)), targets]
            logs[block, g] = right - np.log(np.exp(rows).sum(axis=1, dtype=np.float64))
    return logs


def _log_linear(
    table: Table, temperatures: Sequence[float], counts: Floats
) -> Callable[[Floats], tuple[float, Floats]]:
    """The log loss of the softmax of a weighted mean of logits, and its gradient: convex in the weights."""
    share = counts / counts.sum()

    def loss(weights: Floats) -> tuple[float, Floats]:
        total, gradient = 0.0, np.zeros(len(weights))
        for rows in scaling.blocks(len(table.ids), table.classes):
            logs = np.stack([z[rows] / np.float32(t) for z, t in zip(table.logits, temperatures, strict=True)])
            mixed = scaling.normalised(np.tensordot(weights.astype(np.float32), logs, axes=1))
            here, targets = np.arange(mixed.shape[0]), table.targets[rows]
            total -= float(share[rows] @ mixed[here, targets])
            means = np.einsum("ij,gij->gi", np.exp(mixed), logs)
            gradient += (means - logs[:, here, targets]) @ share[rows]
        return total, gradient

    return loss


def _greedy(table: Table, temperatures: Sequence[float], request: WeightingRequest) -> FittedWeights:
    true = np.exp(target_logs(table, temperatures))
    front = None
    if request.metric != "log_loss":
        runs, blocks = range(len(table.logits)), scaling.blocks(len(table.ids), table.classes)
        logs = (average.tempered(table, temperatures, rows, runs) for rows in blocks)
        front = greedy.front(average.summands(block, request.combine) for block in logs)

    def fit(counts: Floats, allowed: NDArray[np.bool_]) -> Floats:
        drawn = np.flatnonzero(allowed)

        def of_all_runs(weights: Floats) -> Floats:
            expanded = np.zeros(len(allowed))
            expanded[drawn] = weights
            return expanded

        def loss(weights: Floats) -> float:
            return float(-(counts @ np.log(true @ of_all_runs(weights) + _TINY)) / counts.sum())

        def error(weights: Floats) -> float:
            if front is None:
                return loss(weights)
            predicted = front.predicted(of_all_runs(weights))
            if request.metric == "macro_f1":
                return 1 - macro_f1(predicted, table.targets, table.classes, counts)
            return 1 - float(counts @ (predicted == table.targets) / counts.sum())

        return of_all_runs(greedy.select(error, loss, len(drawn), request.rounds))

    return fit
