"""A run's submission: its layout is decided before the first image is answered, its files are written after the last.

`infer` and the stages of a campaign share it. What the files look like is `submission`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config.errors import DataError
from infer import submission
from infer.archive import repeated
from infer.runner import Runner
from infer.submission import Layout


@dataclass(frozen=True, eq=False)
class Sheet:
    """A layout, and int64 `rows`: where the image of each of its rows is in the input; None for the input's order."""

    layout: Layout
    rows: NDArray[np.int64] | None = None

    def write(
        self,
        out: Path,
        runner: Runner,
        probabilities: NDArray[np.float32],
        errors: Mapping[int, str] | None = None,
        unread: Collection[int] = (),
    ) -> list[Path]:
        """Write the submission to `out`, a new `.csv` or a folder to name it in, and its probabilities beside it.

        `probabilities` float32 `[N, C]` and `errors` are in the order of the input; with `errors` they get a column.
        The images `unread` have the class prior, and its likeliest class as their label.
        """
        order = range(len(probabilities)) if self.rows is None else self.rows.tolist()
        values = probabilities if self.rows is None else probabilities[self.rows]
        path = submission.destination(out, runner.models, runner.ensemble.views, datetime.now())
        beside = submission.write(
            path,
            self.layout,
            values,
            runner.class_names,
            labels=runner.prior.labels(runner.finish, values, [n for n, row in enumerate(order) if row in unread]),
            aliases=runner.ensemble.aliases,
            errors=None if errors is None else [errors.get(row, "") for row in order],
        )
        return [path, beside]


def plan(
    runner: Runner,
    ids: Sequence[str],
    id_column: str,
    target_column: str,
    sample: Path | None = None,
    positive: str | None = None,
) -> Sheet:
    """The sheet for images `ids`: as the `sample` is, else two columns in the order of the input.

    `positive` names the class of two whose probability one column is to hold (see `submission.sample_layout`).

    Raises `DataError` for a repeated ID, or a sample that does not fit the members or the images.
    """
    if sample is None:
        twice = repeated(ids)
        if twice is not None:
            raise DataError(f"ID {twice!r} stands twice among the images; a submission has one row for each, keep one")
        return Sheet(submission.plain_layout(ids, runner.class_names, id_column, target_column, positive))
    aliases = runner.ensemble.aliases
    layout = submission.sample_layout(
        sample, runner.class_names, id_column, aliases=aliases, positive=positive, ids=ids
    )
    if layout.note:
        print(layout.note)
    return Sheet(layout, submission.align(ids, layout, str(sample)))
