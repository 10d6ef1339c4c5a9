"""Fits weights or a stack, maps and the rule for labels on a table of out-of-fold predictions, and applies them.

The order is that of `postprocess`: each run at its temperature, mixed or stacked, calibrated, clipped; then labels.
`weights`, `stacking`, `scaling`, `maps` and `decision` fit the single steps; `nested` gives unbiased scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from config.errors import ConfigError
from ensemble import decision
from ensemble.calibration import maps, scaling
from ensemble.calibration.maps import Isotonic, Vector
from ensemble.calibration.scaling import Floats
from ensemble.decision import Rule
from ensemble.fitted_params import FittedParams
from ensemble.oof.oof_table import Table
from ensemble.scores import Ints, Metric
from ensemble.weighting import average, stacking, weights
from ensemble.weighting.average import Combine
from ensemble.weighting.stack import Stack
from ensemble.weighting.weights import Method

Kind = Literal["none", "temperature", "vector", "isotonic"]
Predictions = NDArray[np.float32]


@dataclass(frozen=True)
class Plan(weights.WeightingRequest):
    """What to fit. Of several `calibrations` the one with the lowest nested log loss is selected; of the `rules` for
    labels the one with the highest nested macro-F1, if it is higher than that of the most probable class.

    `clip` asks for a lowest probability.
    """

    calibrations: tuple[Kind, ...] = ("temperature",)
    clip: bool = False
    rules: tuple[Rule, ...] = ()

    def checked(self) -> Plan:
        """The plan itself; `ConfigError` for a name that is none of the choices."""
        choices = {"method": Method, "combine": Combine, "metric": Metric, "calibrations": Kind, "rules": Rule}
        for field_name, known in choices.items():
            value = getattr(self, field_name)
            wrong = [name for name in ((value,) if isinstance(value, str) else value) if name not in get_args(known)]
            if wrong:
                raise ConfigError(f"{field_name}: found {wrong[0]!r}; there are {', '.join(get_args(known))}")
        return self

    def candidates(self) -> tuple[Kind, ...]:
        """The calibrations to choose from. A stack is fitted to the log loss itself and overconfident on its own rows:
        no calibration is always one of its candidates."""
        always: tuple[Kind, ...] = ("none",) if self.method == "stacking" else ()
        return tuple(dict.fromkeys([*self.calibrations, *always]))


class Pool(NamedTuple):
    """A temperature and a weight for each run, how they mix, and the stack that takes the place of the mean."""

    temperatures: tuple[float, ...]
    weights: Floats
    combine: Combine = "probabilities"
    stack: Stack | None = None


class Step(NamedTuple):
    """A calibration of the mixture: a temperature, a map or neither, then a lowest probability."""

    temperature: float = 1.0
    map: Vector | Isotonic | None = None
    clip: float = 0.0

    def apply(self, logs: Predictions) -> Predictions:
        """Log probabilities `[N, C]` of the mixture's."""
        cooled = scaling.normalised(logs / np.float32(self.temperature)) if self.temperature != 1 else logs
        mapped = self.map.apply(cooled) if self.map else cooled
        return np.asarray(maps.clip_logs(mapped, self.clip), dtype=np.float32)


@dataclass(frozen=True)
class EnsembleFit:
    """The fitted parameters; `shifts` are the logarithms of the classes' multipliers where labels are chosen."""

    pool: Pool
    step: Step
    shifts: Floats | None

    @property
    def layers(self) -> FittedParams:
        """The arrays beside the ensemble's file: the stack and the map."""
        return FittedParams(self.pool.stack, self.step.map)


def fit_pool(table: Table, plan: Plan) -> Pool:
    """Temperatures of the runs, then weights or a stack."""
    temperatures = (1.0,) * len(table.logits)
    if plan.calibrations != ("none",):
        temperatures = tuple(_temperature(table, g, present) for g, present in enumerate(table.present))
    fitted = weights.find(table, temperatures, plan)
    stack = stacking.fit(table, temperatures) if plan.method == "stacking" else None
    return Pool(temperatures, fitted, plan.combine, stack)


def _temperature(table: Table, g: int, present: NDArray[np.bool_]) -> float:
    """The temperature of run g; 1 where it predicted none of the rows, such as a run of one fold without that fold."""
    if not present.any():
        return 1.0
    return scaling.temperature(table.logits[g].take(present), table.targets[present])


def mix_pool(table: Table, pool: Pool) -> Predictions:
    """The pool's log probabilities float32 `[N, C]`."""
    if pool.stack:
        return stacking.mix(table, pool.temperatures, pool.stack)
    return average.mix(table, pool.temperatures, pool.weights, pool.combine)


def fit_step(kind: Kind, logs: Predictions, targets: Ints, clip: bool) -> Step:
    """The calibration `kind` of a mixture's log probabilities."""
    step = Step()
    if kind == "temperature":
        step = Step(scaling.temperature(logs, targets))
    elif kind == "vector":
        step = Step(map=maps.vector(logs, targets))
    elif kind == "isotonic":
        step = Step(map=maps.isotonic(logs, targets))
    return step._replace(clip=maps.clip(step.apply(logs), targets)) if clip else step


def mix(blend: EnsembleFit, table: Table) -> Predictions:
    """The blend's log probabilities float32 `[N, C]`."""
    return blend.step.apply(mix_pool(table, blend.pool))


def shifts(rules: Rule | None, logs: Predictions, targets: Ints) -> Floats | None:
    """The rule's shifts, or None for the most probable class."""
    return decision.fit(rules, logs, targets) if rules else None
