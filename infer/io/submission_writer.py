"""A run's submission: its layout is decided before the first prediction, its files are written after the last.

`infer` and the stages of a campaign share it. What the files look like is `submission`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config.errors import DataError
from ensemble.aliases import Groups
from infer.io import submission
from infer.io.archive import repeated
from infer.io.submission import Layout
from infer.runner import Runner


@dataclass(frozen=True, eq=False)
class SubmissionWriter:
    """A layout, and int64 `rows`: where the image of each of its rows is in the input; None for the input's order."""

    layout: Layout
    rows: NDArray[np.int64] | None = None

    def write(
        self,
        out: Path,
        runner: Runner,
        probabilities: NDArray[np.float32],
        labels: NDArray[np.int64],
        errors: Mapping[int, str] | None = None,
    ) -> list[Path]:
        """Write the submission to `out`, a new `.csv` or a folder to name it in, and its probabilities beside it.

        `probabilities` float32 `[N, C]`, the chosen classes `labels` int64 `[N]` and `errors` are in the order of the
        input; with `errors` the probabilities get a column for them.
        """
        order = range(len(probabilities)) if self.rows is None else self.rows.tolist()
        values = probabilities if self.rows is None else probabilities[self.rows]
        path = submission.destination(out, runner.models, runner.ensemble.views, datetime.now())
        beside = submission.write(
            path,
            self.layout,
            values,
            runner.class_names,
            labels=labels if self.rows is None else labels[self.rows],
            aliases=runner.ensemble.aliases,
            errors=None if errors is None else [errors.get(row, "") for row in order],
        )
        return [path, beside]


def plan(
    class_names: Sequence[str],
    aliases: Groups,
    ids: Sequence[str],
    id_column: str | None,
    target_column: str | None,
    sample: Path | None = None,
    positive: str | None = None,
) -> SubmissionWriter:
    """The writer for images `ids`: laid out as the `sample`, else two columns in the order of the input.

    `positive` is as in `submission.sample_layout`. Raises `DataError` for a repeated ID, or a sample that does not fit
    the classes or the images, and `ConfigError` for a `positive` that does not.
    """
    if sample is None:
        twice = repeated(ids)
        if twice is not None:
            raise DataError(f"ID {twice!r} stands twice among the images; a submission has one row for each, keep one")
        layout = submission.plain_layout(ids, class_names, id_column or "ID", target_column or "target", positive)
        return SubmissionWriter(layout)
    layout = submission.sample_layout(sample, class_names, id_column, aliases=aliases, positive=positive, ids=ids)
    return SubmissionWriter(layout, submission.align(ids, layout, str(sample)))
