"""The picture of a search: the score of each trial in order, and how much each setting mattered."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import optuna
from matplotlib.figure import Figure

from config.places import atomic_path
from training.policy.stopping import HIGHER_IS_BETTER

_SEEN = 4  # trials with a score that the importances need


def write(study: optuna.Study, metric: str, path: Path) -> None:
    """Draw the study into `path`, a PNG."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    done = [
        trial for trial in study.trials if trial.value is not None and trial.state == optuna.trial.TrialState.COMPLETE
    ]
    cut = [
        trial for trial in study.trials if trial.state == optuna.trial.TrialState.PRUNED and trial.intermediate_values
    ]
    if cut:
        last = [trial.intermediate_values[max(trial.intermediate_values)] for trial in cut]
        left.scatter([trial.number for trial in cut], last, marker="x", color="0.6", label="cut short")
    if done:
        scores = np.array([float(trial.value or 0.0) for trial in done])
        best = np.maximum.accumulate(scores) if HIGHER_IS_BETTER[metric] else np.minimum.accumulate(scores)
        left.scatter([trial.number for trial in done], scores, label="trained to the end")
        left.step([trial.number for trial in done], best, where="post", color="C1", label="best so far")
    left.set(title="History", xlabel="Trial", ylabel=metric)
    left.xaxis.get_major_locator().set_params(integer=True)
    left.grid(alpha=0.3)
    if done or cut:
        left.legend(fontsize=8)
    shares = _importances(study, len(done))
    if shares:
        names = list(shares)[::-1]
        right.barh(names, [shares[name] for name in names], height=min(0.8, 0.2 * len(names)))
        right.set(title="Importance (fANOVA)", xlabel="Share of the variance of the score", xlim=(0, 1))
    else:
        right.set_axis_off()
        right.text(0.5, 0.5, f"Importances need {_SEEN} trained trials\nwhose scores differ", ha="center", va="center")
    with atomic_path(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")


def _importances(study: optuna.Study, scores: int) -> dict[str, float]:
    """The share of each setting, largest first; empty where there are too few scores, or all are alike."""
    if scores < _SEEN:
        return {}
    with warnings.catch_warnings(action="ignore"):
        try:
            return optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
            )
        except RuntimeError:  # what fANOVA says where no score differs from another
            return {}
