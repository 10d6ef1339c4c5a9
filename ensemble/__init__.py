"""Ensembles: fitted on out-of-fold logits, and applied. NumPy and SciPy only.

`fit_ensemble` is the Python function, `python -m infer fit` the command.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ensemble.fit import Fitted

__all__ = ["fit_ensemble"]


def fit_ensemble(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    views: Sequence[str] = ("original",),
    **plan: Any,
) -> Fitted:
    """Fit weights, temperatures and calibration on the out-of-fold predictions of finished runs; write the file `out`.

    `infer.load(out)` opens it. `views` (names or presets) are what each member will see. `plan` are the fields of
    `ensemble.ensemble_fit.Plan`, such as `method="greedy"`, `metric="macro_f1"` and `calibrations=("none", "vector")`.
    `cross_fitted` of the result is the honest score: each row is predicted by a fit that had not seen its fold. Raises
    `ConfigError` where `out` exists, and `CheckpointError` or `DataError` for runs that do not fit together.
    """
    from ensemble import ensemble_file, fit
    from ensemble import views as presets
    from ensemble.ensemble_fit import Plan

    target = Path(out)
    ensemble_file.refuse_existing(target)
    fitted = fit.fit([Path(run) for run in runs], presets.expand(views), plan=Plan(**plan).checked())
    fit.write(target, fitted)
    return fitted
