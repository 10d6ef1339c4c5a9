"""Whether second heads of confused classes help, and with what weight: judged on out-of-fold (OOF) answers.

Both sides are honest: the ensemble's answers are those of `nested`, the second head's those to the images that
validated its folds. Temperature and weight are fitted without each part in turn, and a second head is kept only where
that has a log loss lower by more than its standard error, and no more mistakes. How it is applied stands in `pairs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from config.errors import ConfigError, DataError
from infer import calibration, oof, pairs
from infer.calibration import Floats
from infer.member import Member
from infer.oof import Table
from infer.pairs import Pair
from infer.scores import Ints

Logits = NDArray[np.floating]
Mask = NDArray[np.bool_]

_WEIGHTS = np.linspace(0.0, 1.0, 21)
_TEMPERATURES = (0.02, 50.0)
_FEWEST = 8  # images that an honest judgement needs
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Judged:
    """A second head and what it does to the `rows` of a table that it is asked about and that are of its classes.

    `said` is the probability of the first of `columns`, fitted without the row; losses are in nats an image, `errors`
    count images. `pair` is None where it does not help.
    """

    names: tuple[str, str]
    columns: tuple[int, int]
    rows: Ints
    said: Floats
    weights: Floats
    before: float
    after: float
    errors: tuple[int, int]
    pair: Pair | None

    def apply(self, logs: Logits) -> Logits:
        """Log probabilities `[N, C]` with its cross-fitted answers, or as they were where it is left out."""
        if self.pair is None:
            return logs
        probabilities = np.exp(logs[self.rows].astype(np.float64))
        pairs.share(probabilities, self.columns, self.said, self.weights)
        changed = logs.copy()
        changed[self.rows] = np.log(np.maximum(probabilities, _TINY))
        return changed

    def text(self) -> str:
        """One line for people."""
        count, (old, new) = len(self.rows), self.errors
        between = f"second head {self.names[0]} / {self.names[1]}: asked about {count} of their images"
        if count < _FEWEST:
            return f"{between}, too few to judge it: left out"
        figures = f"log loss {self.before:.4f} -> {self.after:.4f}, wrong {old} -> {new}"
        why = "that may be chance" if self.after < self.before else "it does not help"
        kept = f"kept with weight {self.pair.weight:.2f}" if self.pair else f"left out, as {why}"
        return f"{between}; {figures}: {kept}"


def judge(
    runs: Sequence[oof.Run], table: Table, logs: Logits, part: Ints, class_names: Sequence[str]
) -> tuple[Judged, ...]:
    """Judge runs of two classes beside honest log probabilities `logs` `[N, C]` of the table's rows.

    `part` `[N]` numbers the parts that are fitted without each other. Those that do not help come first: the others
    are judged as if they had never been. `ConfigError` for a run of other classes, `DataError` where the two sides
    disagree on a target.
    """
    columns = [_columns(run, class_names) for run in runs]
    _refuse_twice(runs, columns)
    which = pairs.asked(np.exp(logs), columns)
    found = [_judge(run, columns[n], table, logs, which == n, part) for n, run in enumerate(runs)]
    useless = tuple(one for one in found if one.pair is None)
    if not useless:
        return tuple(found)
    rest = [run for run, one in zip(runs, found, strict=True) if one.pair]
    return (*useless, *judge(rest, table, logs, part, class_names))


def _judge(run: oof.Run, columns: tuple[int, int], table: Table, logs: Logits, asked: Mask, part: Ints) -> Judged:
    known, place = _aligned(run, table, columns)
    logits, wanted, mine = run.logits[known], (run.targets == 1).astype(np.int64)[known], asked[place]
    rows = place[mine]
    own = np.exp(calibration.log_softmax(logs[rows][:, list(columns)]))[:, 0]
    said, weights = _cross_fitted(logits, wanted, mine, own, part[place])
    mixed, right = (1 - weights) * own + weights * said, wanted[mine] == 0
    before, after = _losses(own, right), _losses(mixed, right)
    everything = np.ones(len(place), dtype=np.bool_)
    warm, weight = _fit(logits, wanted, everything, mine, own) if len(rows) >= _FEWEST else (1.0, 0.0)
    errors = int(((own > 0.5) != right).sum()), int(((mixed > 0.5) != right).sum())
    helps = len(rows) >= _FEWEST and weight > 0 and _lower(after, before) and errors[1] <= errors[0]
    names = run.class_names[0], run.class_names[1]
    pair = Pair(classes=names, weight=weight, members=_members(run, warm)) if helps else None
    return Judged(names, columns, rows, said, weights, _mean(before), _mean(after), errors, pair)


def _cross_fitted(logits: Logits, wanted: Ints, mine: Mask, own: Floats, part: Ints) -> tuple[Floats, Floats]:
    """What the second head says of the rows that are `mine`, and its weight there, fitted without each row's part."""
    said, weights = np.zeros(len(own)), np.zeros(len(own))
    for number in np.unique(part[mine]).tolist():
        seen, unseen = part != number, part[mine] == number
        if (seen & mine).any():
            warm, weights[unseen] = _fit(logits, wanted, seen, seen & mine, own[~unseen])
            said[unseen] = _first(_odds(logits[mine][unseen]), warm)
    return said, weights


def _fit(logits: Logits, wanted: Ints, rows: Mask, mine: Mask, own: Floats) -> tuple[float, float]:
    """The temperature of the second head on all its `rows`, and its weight on those that are `mine`."""
    warm = _temperature(_odds(logits[rows]), wanted[rows] == 0)
    said, right = _first(_odds(logits[mine]), warm), wanted[mine] == 0
    losses = [_mean(_losses((1 - weight) * own + weight * said, right)) for weight in _WEIGHTS]
    return warm, float(_WEIGHTS[int(np.argmin(losses))])


def _temperature(odds: Floats, right: Mask) -> float:
    """What divides the log odds `[n]` for the least cross entropy with Platt's (1999) targets, which n images without a
    mistake do not make certain: (n+ + 1) / (n+ + 2) and 1 / (n- + 2)."""
    count = int(right.sum())
    wanted = np.where(right, (count + 1) / (count + 2), 1 / (len(right) - count + 2))

    def loss(log_temperature: float) -> float:
        scaled = odds / np.exp(log_temperature)
        return float((np.logaddexp(0, scaled) - wanted * scaled).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded").x))


def _odds(logits: Logits) -> Floats:
    """float64 `[n]`: the logarithm of the first of two classes' odds."""
    return logits[:, 0].astype(np.float64) - logits[:, 1]


def _first(odds: Floats, temperature: float) -> Floats:
    """float64 `[n]`: the probability of the first of two classes."""
    return np.asarray(expit(odds / temperature))


def _losses(first: Floats, right: Mask) -> Floats:
    """float64 `[n]`: minus the log probability of the truth; `right` says where the first class is the truth."""
    return np.asarray(-np.log(np.maximum(np.where(right, first, 1 - first), _TINY)))


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else 0.0


def _lower(after: Floats, before: Floats) -> bool:
    """Whether the mean loss fell by more than the standard error of the images' differences."""
    gains = before - after
    return bool(gains.mean() > gains.std(ddof=1) / np.sqrt(len(gains)))


def _columns(run: oof.Run, class_names: Sequence[str]) -> tuple[int, int]:
    unknown = [name for name in run.class_names if name not in class_names]
    if len(run.class_names) != 2 or unknown or len(class_names) < 3:
        raise ConfigError(
            f"--pairs {run.path}: is a run of the classes {', '.join(run.class_names[:4])}; it takes a run of two of "
            "the ensemble's classes, as `python -m training pair RUN` trains it"
        )
    first, second = (list(class_names).index(name) for name in run.class_names)
    return first, second


def _refuse_twice(runs: Sequence[oof.Run], columns: Sequence[tuple[int, int]]) -> None:
    named = [frozenset(pair) for pair in columns]
    twice = [run for number, run in enumerate(runs) if named[number] in named[:number]]
    if twice:
        raise ConfigError(f"--pairs {twice[0].path}: another run is of the same two classes; give one of them")


def _aligned(run: oof.Run, table: Table, columns: Sequence[int]) -> tuple[Ints, Ints]:
    """Which of the run's rows the table has, and where; `DataError` where targets differ."""
    known = np.flatnonzero(np.isin(run.ids, table.ids))
    place = np.searchsorted(table.ids, run.ids[known])
    wrong = np.asarray(columns)[run.targets[known]] != table.targets[place]
    if wrong.any():
        name = str(run.ids[known][wrong][0])
        raise DataError(f"{run.path}: image {name!r} has another target than in the ensemble's runs; train it again")
    return known, place


def _members(run: oof.Run, temperature: float) -> tuple[Member, ...]:
    share = 1 / len(run.folds)
    return tuple(
        Member(path=fold / oof.BEST, group=run.path.resolve().name, weight=share, temperature=temperature)
        for fold in run.folds
    )
