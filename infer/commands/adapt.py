"""`python -m infer adapt`: fits the margin under which an image needs all views and members, on OOF images.

Every image is predicted by members that were not trained on it: those of its own fold, in each run of the ensemble. So
"all members" are fewer here than at inference, and the first of them is the strongest of that fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config import load
from config.errors import ConfigError
from config.program.parser import Parser, fraction
from data import sources
from data.audit import actions
from ensemble import ensemble_file
from ensemble.ensemble_file import Ensemble
from ensemble.member import Member
from ensemble.oof import oof_files
from infer import adaptive, teacher
from infer.adaptive import FittedMargin
from infer.runner import OnBad, Runner


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code; `TandemError`s are the caller's."""
    about = "Fit the margin under which `--tta adaptive` gives an image all views and members, on out-of-fold images."
    parser = Parser("python -m infer adapt", description=about)
    parser.add_argument("file", type=Path, metavar="ENSEMBLE", help="an ensemble of RUN/fold_K/best checkpoints")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the ensemble with its margin, a new file"
    )
    parser.add_argument("--tta", nargs="+", metavar="VIEW", help="the views that it shall have (default: its own)")
    parser.add_argument("--loss", type=fraction, default=0.0, help="accuracy that may be lost (default: %(default)s)")
    options = parser.parse_args(words)
    ensemble_file.refuse_existing(options.out)
    chosen = ensemble_file.with_views(ensemble_file.read(options.file), options.tta, None)
    fitted = fit(chosen, options.loss)
    ensemble_file.write(options.out, chosen.model_copy(update={"adaptive": fitted.threshold}))
    print(fitted.text())
    print(f"wrote {options.out}")
    return 0


def fit(chosen: Ensemble, loss: float = 0.0) -> FittedMargin:
    """The threshold for an ensemble of `RUN/fold_K/best` members; `ConfigError` for others, and for runs whose folds
    differ."""
    if chosen.layers:
        raise ConfigError(f"{chosen.layers}: a stacked or mapped ensemble needs all its members; adapt a plain one")
    runs = sorted({_run_of(member) for member in chosen.members})
    folds = teacher.common_folds(runs, "adapt an ensemble of one split")
    settings = load.read(runs[0] / "config.yaml").data
    table = actions.load(settings).table
    predictions = [
        _predictions(chosen, fold, table, [folds.get(name) == fold for name in table.ids], settings.on_bad_image)
        for fold in sorted({oof_files.number(member.path.parent) for member in chosen.members})
    ]
    first, full, targets = (np.concatenate(column) for column in zip(*predictions, strict=True))
    return adaptive.fit(first, full, targets, len(chosen.members) * len(chosen.views), loss)


def _predictions(
    chosen: Ensemble, fold: int, table: sources.Table, validates: Sequence[bool], on_bad_image: OnBad
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Log probabilities of one pass and of all, and the targets, of the images that validate a fold; those that cannot
    be read are left out, as in the run."""
    rows = np.flatnonzero(validates)
    members = tuple(member for member in chosen.members if oof_files.number(member.path.parent) == fold)
    ensemble = chosen.model_copy(update={"members": members})
    alone = members[adaptive.strongest(ensemble)].model_copy(update={"weight": 1.0})
    first = ensemble.model_copy(update={"members": (alone,), "views": chosen.views[:1], "temperature": 1.0})
    logs = []
    for tried in (first, ensemble):
        with Runner(tried) as runner:
            batches = runner.run([table.paths[row] for row in rows], on_bad_image=on_bad_image)
            logs.append(np.log(np.maximum(np.concatenate([batch.probabilities for batch in batches]), 1e-30)))
    good = np.isfinite(logs[0]).all(axis=1)
    return logs[0][good], logs[1][good], table.labels[rows][good]


def _run_of(member: Member) -> Path:
    run = member.path.resolve().parent.parent
    if not member.path.parent.name.startswith("fold_") or not (run / "folds.csv").is_file():
        raise ConfigError(
            f"{member.path}: is no RUN/fold_K/best, so that nobody knows which images it never saw; "
            "adapt the ensemble of checkpoints, and copy its `adaptive` to the other file"
        )
    return run
