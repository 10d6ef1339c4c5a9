"""The audit around a training: what is known of the data before it, and what the trained folds say of the labels.

How images are audited stands in `data.audit`; this is when, for which run, and where it is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config import load
from config.errors import Interrupted
from config.schema import Settings
from config.sections.data import Data
from config.text import counted
from data import csvfile, groups, sources
from data.audit import actions, labels, page, table
from data.audit.audit import Audit, Stopped, audit, test_images
from data.audit.findings import Finding, counts, ordered
from data.progress_bar import bar
from ensemble.calibration.scaling import blocks, log_softmax
from training.loop import metrics
from training.run import results, run_dir

APPLIED = "audit_applied.csv"


def before(
    settings: Settings, given: sources.Table, stop_requested: Callable[[], bool], folder: Callable[[], Path]
) -> tuple[sources.Table, list[Path]]:
    """Look at the images: the table with copies of one picture as groups, and the files that may be unreadable.

    Says in a line what was found. `Interrupted` with `folder` when the user stops it; the next time goes on
    from there.
    """
    if settings.data.streaming:  # images are read while training, and not before
        return given, []
    if not settings.data.audit:
        return given, given.paths
    try:
        found = _audit(settings.data, given, stop_requested)
    except Stopped:
        raise Interrupted(folder()) from None
    print(f"{summary(found.findings)} (python -m data audit --root {settings.data.root})")
    if given.fold_of is not None and (copies := _copied(given.fold_of, found.groups)):
        print(
            f"audit: {counted(copies, 'validation image is a copy', 'validation images are copies')} of "
            "training images, so that scores come out too high; drop"
            " them by data.audit_actions, or set folds.strategy to draw other folds"
        )
    together = found.groups if given.groups is None else groups.joined([found.groups, given.groups])
    return replace(given, groups=together), found.unreadable


def after(folder: Path) -> list[Finding]:
    """Write `audit.csv` and `audit.html` of a run, with what its out-of-fold answers say of the labels; the findings.

    What was applied of the user's own table is kept in `audit_applied.csv`.
    Nothing is written, and nothing returned, where the settings have no audit or the data set is not here.
    """
    settings = load.read(folder / run_dir.CONFIG)
    if not settings.data.audit or settings.data.streaming or not settings.data.root.is_dir():
        return []
    applied = actions.load(settings.data)
    found = _audit(settings.data, applied.table, lambda: False)
    of_labels, right = _of_labels(folder, applied.table)
    everything = ordered([*found.findings, *of_labels])
    table.write(folder, everything, earlier=found.findings)
    said = applied.summary() if settings.data.audit_actions else ""
    page.write(folder, settings.data.root, found, everything, said, right)
    if applied.steps:
        rows = ((step.id, step.action, step.value) for step in applied.steps)
        csvfile.write(folder / APPLIED, ("ID", "action", "value"), rows)
    return everything


def summary(found: list[Finding]) -> str:
    """One line for people."""
    number = [f"{count} {kind.replace('_', ' ')}" for kind, count in counts(found).items()]
    return f"audit: {', '.join(number) or 'nothing odd was found'}"


def _copied(fold_of: NDArray[np.int64], group_of: NDArray[np.int64]) -> int:
    """How many images validate a fold whose training images hold a copy of them."""
    count = 0
    for fold in set(fold_of.tolist()) - {-1}:
        judged = fold_of == fold
        count += int(np.isin(group_of[judged], group_of[~judged]).sum())
    return count


def _audit(data: Data, given: sources.Table, stop: Callable[[], bool]) -> Audit:
    test = test_images(data)
    with bar("audit", len(given.ids) + len(test.ids if test else [])) as progress:
        return audit(given, test, data, stop=stop, progress=progress)


def _of_labels(folder: Path, given: sources.Table) -> tuple[list[Finding], float]:
    """What the out-of-fold answers say of labels, and the share of the images that they give their label."""
    ids, logits, targets = results.oof(folder)
    known = np.isin(ids, given.ids)
    logits, targets = logits.take(known), targets[known]
    probabilities = np.empty(logits.shape)
    for rows in blocks(*logits.shape):
        probabilities[rows] = np.exp(log_softmax(logits[rows]))
    right = float((metrics.predictions(logits) == targets).mean()) if len(targets) else 0.0
    names = results.class_names(folder)
    return labels.find(np.array(ids)[known].tolist(), probabilities, targets, names), right
