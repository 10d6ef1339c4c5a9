"""Fits an ensemble on out-of-fold (OOF) answers: a temperature for each run, weights of the runs, one last temperature.

A run's fold members share its weight. The weights are the log-loss optimum over the simplex, which is convex for a mean
of probabilities. The gain that is reported comes from rows that neither weights nor temperatures saw. The OOF answers
are those of the original view: what other views add is not part of the fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, minimize
from sklearn.metrics import f1_score
from sklearn.model_selection import KFold

from config.errors import ConfigError
from infer import calibration, oof
from infer.calibration import Floats
from infer.ensemble import Ensemble, Mixture
from infer.member import Member

_PARTS = 5  # parts of the cross-fit
_NEGLIGIBLE = 1e-4  # a smaller weight is written as none
_FLOOR = 1e-9  # keeps an image defined that only runs of weight 0 answered


@dataclass(frozen=True)
class Blend:
    """What is fitted: a temperature and a weight for each run, and the temperature of the mixture."""

    temperatures: tuple[float, ...]
    weights: Floats
    temperature: float


@dataclass(frozen=True)
class Score:
    """Log loss in nats, macro-F1 over all classes, and ECE of answers to `rows` images."""

    name: str
    rows: int
    log_loss: float
    macro_f1: float
    ece: float


@dataclass(frozen=True)
class Fitted:
    """The ensemble and how it scores on OOF. `runs` and `equal` are before the fit, `fitted` saw its own rows,
    `cross_fitted` did not: that is the honest figure."""

    ensemble: Ensemble
    blend: Blend
    runs: list[Score]
    equal: Score
    fitted: Score
    cross_fitted: Score


def fit(
    paths: Sequence[Path], views: Sequence[str] = ("original",), replaced: Mapping[Path, Member] | None = None
) -> Fitted:
    """Fit the runs in `paths`; `replaced` maps `RUN/fold_K` to the artefact that stands for its checkpoint.

    Raises `CheckpointError`, `DataError` or `ConfigError` for runs that cannot be read or do not fit together.
    """
    runs = [oof.read(path) for path in paths]
    members = _members(runs, replaced or {})
    table = oof.align(runs)
    names = _names(runs)
    blend = fit_blend(table)
    scores = [
        _score(name, table.logits[g][p], table.targets[p]) for g, name in enumerate(names) for p in [table.present[g]]
    ]
    equal = Blend((1.0,) * len(runs), np.full(len(runs), 1 / len(runs)), 1.0)
    ensemble = Ensemble(
        temperature=blend.temperature,
        views=tuple(views),
        members=tuple(
            member.model_copy(
                update={"group": name, "weight": float(weight) / len(mine), "temperature": blend.temperatures[g]}
            )
            for g, (name, weight, mine) in enumerate(zip(names, blend.weights, members, strict=True))
            for member in mine
            if weight > 0
        ),
    )
    return Fitted(
        ensemble,
        blend,
        scores,
        _score("equal weights", mix(equal, table), table.targets),
        _score("fitted", mix(blend, table), table.targets),
        _score("cross-fitted", cross_fit(table), table.targets),
    )


def fit_blend(table: oof.Table) -> Blend:
    """Temperatures, weights and the last temperature that minimise the log loss of the table's rows."""
    kept = [(z[p], table.targets[p]) for z, p in zip(table.logits, table.present, strict=True)]
    temperatures = tuple(calibration.temperature(logits, targets) for logits, targets in kept)
    rows = np.arange(len(table.targets))
    true = np.stack(
        [
            np.exp(calibration.log_softmax(logits, t)[rows, table.targets])
            for logits, t in zip(table.logits, temperatures, strict=True)
        ],
        axis=1,
    )
    weights = optimum(true, np.stack(table.present, axis=1))
    mixed = mix(Blend(temperatures, weights, 1.0), table)
    return Blend(temperatures, weights, calibration.temperature(mixed, table.targets))


def optimum(true: Floats, present: NDArray[np.bool_]) -> Floats:
    """Weights `[G]` on the simplex that minimise the log loss of a weighted mean of probabilities.

    `true` `[N, G]` is the probability that run g gives to the right class; where `present` is False it is ignored and
    the other weights of that row are normalised. Weights under 1e-4 become 0.
    """
    groups = true.shape[1]
    if groups == 1:
        return np.ones(1)
    shown = present.astype(np.float64)
    given = np.where(present, true, 0.0)

    def loss(weights: Floats) -> tuple[float, Floats]:
        raised = weights + _FLOOR
        mixed, total = given @ raised + np.finfo(float).tiny, shown @ raised
        gradient = (shown / total[:, None] - given / mixed[:, None]).mean(axis=0)
        return float((np.log(total) - np.log(mixed)).mean()), gradient

    found = minimize(
        loss,
        np.full(groups, 1 / groups),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * groups,
        constraints=LinearConstraint(np.ones((1, groups)), 1, 1),
        options={"ftol": 1e-12, "maxiter": 500},
    )
    weights = np.where(found.x < _NEGLIGIBLE, 0.0, found.x)
    return np.asarray(weights / weights.sum())


def mix(blend: Blend, table: oof.Table) -> Floats:
    """Log probabilities `[N, C]`; the weights of the runs that answered a row are normalised for it.

    A row that only runs of weight 0 answered takes those equally.
    """
    present = np.stack(table.present, axis=1)
    weights = blend.weights * present
    weights = np.where(weights.sum(axis=1, keepdims=True) > 0, weights, present)
    mixture = Mixture("probabilities")
    for g, logits in enumerate(table.logits):
        mixture.add(logits, weights[:, g], blend.temperatures[g])
    return mixture.log_probabilities(blend.temperature)


def cross_fit(table: oof.Table, seed: int = 0) -> Floats:
    """Log probabilities `[N, C]`, each row mixed by a blend fitted on the other four fifths of the rows."""
    answers = np.zeros(table.logits[0].shape, dtype=np.float64)
    parts = KFold(min(_PARTS, len(table.ids)), shuffle=True, random_state=seed)
    for seen, unseen in parts.split(table.ids):
        answers[unseen] = mix(fit_blend(_rows(table, seen)), _rows(table, unseen))
    return answers


def report(fitted: Fitted) -> str:
    """The scores as a table, with each run's weight and temperature."""
    width = max(len(score.name) for score in [*fitted.runs, fitted.equal])
    lines = [f"{'':<{width}} {'images':>7} {'log loss':>9} {'macro-F1':>9} {'ECE':>7} {'weight':>7} {'temp.':>6}"]
    for score, weight, temperature in zip(fitted.runs, fitted.blend.weights, fitted.blend.temperatures, strict=True):
        lines.append(f"{_line(score, width)} {weight:>7.3f} {temperature:>6.3f}")
    lines += [_line(score, width) for score in (fitted.equal, fitted.fitted, fitted.cross_fitted)]
    lines[-2] += f" {'':>7} {fitted.blend.temperature:>6.3f}"
    lines.append("cross-fitted: no row was scored by weights or temperatures that had seen it")
    if fitted.ensemble.views != ("original",):
        lines.append(f"fitted on the original view; at inference each member sees {', '.join(fitted.ensemble.views)}")
    return "\n".join(lines)


def _line(score: Score, width: int) -> str:
    return f"{score.name:<{width}} {score.rows:>7} {score.log_loss:>9.4f} {score.macro_f1:>9.4f} {score.ece:>7.4f}"


def _score(name: str, logits: NDArray[np.floating], targets: NDArray[np.int64]) -> Score:
    answers = calibration.log_softmax(logits)
    labels = np.arange(answers.shape[1])
    f1 = f1_score(targets, answers.argmax(axis=1), labels=labels, average="macro", zero_division=0)
    ece = calibration.expected_calibration_error(np.exp(answers), targets)
    return Score(name, len(targets), calibration.log_loss(answers, targets), float(f1), ece)


def _rows(table: oof.Table, rows: NDArray[np.int64]) -> oof.Table:
    return oof.Table(
        table.ids[rows], table.targets[rows], [z[rows] for z in table.logits], [p[rows] for p in table.present]
    )


def _names(runs: Sequence[oof.Run]) -> list[str]:
    """The runs' folder names, or their whole paths where two have one name."""
    short = [run.path.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.path) for run in runs]


def _members(runs: Sequence[oof.Run], replaced: Mapping[Path, Member]) -> list[list[Member]]:
    """For each run its folds' members: the best checkpoint, or what stands for it."""
    wanted = {_fold_of(path): member for path, member in replaced.items()}
    folds = {fold.resolve() for run in runs for fold in run.folds}
    unknown = wanted.keys() - folds
    if unknown:
        known = ", ".join(str(fold) for run in runs for fold in run.folds)
        raise ConfigError(f"--replace {min(unknown)}: is no fold of these runs; they have {known}")
    return [[wanted.get(fold.resolve(), Member(path=fold / oof.BEST)) for fold in run.folds] for run in runs]


def _fold_of(path: Path) -> Path:
    resolved = path.resolve()
    return resolved.parent if resolved.name == oof.BEST else resolved
