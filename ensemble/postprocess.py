"""From the members' predictions to the ensemble's: mixed or stacked, calibrated, clipped; and the label of each row.

The runner calls this for each batch. `fit` fits what is applied here, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from config.errors import ConfigError
from ensemble import aliases, decision, fitted_params
from ensemble.calibration import maps, scaling
from ensemble.calibration.scaling import Floats
from ensemble.ensemble_file import Ensemble
from ensemble.fitted_params import FittedParams
from ensemble.member import Member
from ensemble.weighting.average import WeightedAverage


class Postprocess:
    """An ensemble's last steps, ready for members that know `class_names`.

    `ConfigError` when the file weighs a class that they do not know, `WeightsError` for layers that do not fit.
    """

    def __init__(self, ensemble: Ensemble, class_names: Sequence[str]):
        self.ensemble = ensemble
        self._class_names = class_names
        self._groups = groups(ensemble.members)
        self._layers = FittedParams()
        if ensemble.layers:
            self._layers = fitted_params.read(ensemble.layers, len(class_names), len(self._groups))
        self._shifts = _shifts(ensemble, class_names)

    def view_temperature(self, member: Member) -> float:
        """The temperature of the logits of each of the member's views."""
        return member.temperature if self.ensemble.tempered == "views" else 1.0

    def probabilities(self, predictions: Sequence[Floats]) -> NDArray[np.float32]:
        """float32 `[N, C]` of the members' log probabilities, each `[N, C]`, in the order of the ensemble's members."""
        logs: NDArray[np.floating] = self._mix(predictions)
        if self._layers.map:
            logs = self._layers.map.apply(logs)
        return np.asarray(np.exp(maps.clip_logs(logs, self.ensemble.clip)), dtype=np.float32)

    def labels(self, probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
        """The class `[N]` that each row of probabilities becomes; names of one class count together."""
        blocks = [self._labels(probabilities[rows]) for rows in scaling.blocks(*probabilities.shape)]
        return np.concatenate([np.zeros(0, dtype=np.int64), *blocks])

    def likeliest(self, probabilities: NDArray[np.float32]) -> int:
        """The most probable class of float32 `[C]`; names of one class count together, multipliers do not count."""
        return int(aliases.summed(probabilities[None], self._class_names, self.ensemble.aliases)[0].argmax())

    def _labels(self, probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
        together = aliases.summed(probabilities, self._class_names, self.ensemble.aliases)
        if self._shifts is None:
            return np.asarray(together.argmax(axis=1))
        with np.errstate(divide="ignore"):
            return decision.labels(np.log(together, dtype=np.float64), self._shifts)

    def _mix(self, predictions: Sequence[Floats]) -> Floats:
        if self._layers.stack is None:
            return self._average(predictions, range(len(predictions))).log_probabilities(self.ensemble.temperature)
        runs = [self._average(predictions, group).log_probabilities() for group in self._groups]
        logs = WeightedAverage("logits")
        logs.add(self._layers.stack.apply(runs))
        return logs.log_probabilities(self.ensemble.temperature)

    def _average(self, predictions: Sequence[Floats], numbers: Sequence[int]) -> WeightedAverage:
        mixture = WeightedAverage(self.ensemble.combine)
        for number in numbers:
            member = self.ensemble.members[number]
            rest = member.temperature if self.ensemble.tempered == "mean" else 1.0
            mixture.add(predictions[number], member.weight, rest)
        return mixture


def groups(members: Sequence[Member]) -> list[list[int]]:
    """The indices of the members of each run, in the order of the runs; a member without a group is a group."""
    names = [member.group or f"\0{number}" for number, member in enumerate(members)]
    order = sorted(range(len(names)), key=lambda number: names.index(names[number]))
    return [list(numbers) for _, numbers in groupby(order, key=lambda number: names[number])]


def _shifts(ensemble: Ensemble, class_names: Sequence[str]) -> Floats | None:
    """The shifts of the log probabilities where a label is chosen, or None."""
    unknown = [name for name in ensemble.class_multipliers if name not in class_names]
    if unknown:
        raise ConfigError(
            f"class_multipliers: {unknown[0]!r} is no class of the members; they know {class_names[0]!r}, ..."
        )
    if not ensemble.class_multipliers:
        return None
    return np.log([ensemble.class_multipliers.get(name, 1.0) for name in class_names])
