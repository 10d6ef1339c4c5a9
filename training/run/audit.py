"""The audit of a run: of the images before training, and of the labels by the trained folds' predictions.

`data.audit` finds what is odd; this file decides when it runs and where the findings are written.
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
    settings: Settings, images: sources.Table, stop_requested: Callable[[], bool], folder: Callable[[], Path]
) -> tuple[sources.Table, list[Path]]:
    """Audit the images: the table with copies of one picture as groups, and the files that may be unreadable.

    Prints the findings in a line. `Interrupted` with `folder` when the user stops it; the next audit resumes there.
    """
    if settings.data.streaming:  # images are read while training, and not before
        return images, []
    if not settings.data.audit:
        return images, images.paths
    try:
        audited = _audit(settings.data, images, stop_requested)
    except Stopped:
        raise Interrupted(folder()) from None
    print(f"{summary(audited.findings)} (python -m data audit --root {settings.data.root})")
    if images.fold_of is not None and (copies := _copied(images.fold_of, audited.groups)):
        print(
            f"audit: {counted(copies, 'validation image is a copy', 'validation images are copies')} of "
            "training images, so that scores come out too high; drop"
            " them by data.audit_actions, or set folds.strategy to draw other folds"
        )
    together = audited.groups if images.groups is None else groups.joined([audited.groups, images.groups])
    return replace(images, groups=together), audited.unreadable


def after(folder: Path) -> list[Finding]:
    """Write `audit.csv` and `audit.html` of a run, with labels that its out-of-fold predictions doubt; the findings.

    `audit_applied.csv` gets the actions of the user's own table. Nothing is written, and nothing returned, where the
    settings have no audit or the data set is missing.
    """
    settings = load.read(folder / run_dir.CONFIG)
    if not settings.data.audit or settings.data.streaming or not settings.data.root.is_dir():
        return []
    applied = actions.load(settings.data)
    audited = _audit(settings.data, applied.table, lambda: False)
    of_labels, right = _of_labels(folder, applied.table)
    everything = ordered([*audited.findings, *of_labels])
    table.write(folder, everything, earlier=audited.findings)
    actions_line = applied.summary() if settings.data.audit_actions else ""
    page.write(folder, settings.data.root, audited, everything, actions_line, right)
    if applied.steps:
        rows = ((step.id, step.action, step.value) for step in applied.steps)
        csvfile.write(folder / APPLIED, ("ID", "action", "value"), rows)
    return everything


def summary(findings: list[Finding]) -> str:
    """One line for people."""
    numbers = [f"{count} {kind.replace('_', ' ')}" for kind, count in counts(findings).items()]
    return f"audit: {', '.join(numbers) or 'nothing odd was found'}"


def _copied(fold_of: NDArray[np.int64], group_of: NDArray[np.int64]) -> int:
    """How many images validate a fold whose training images hold a copy of them."""
    folds = set(fold_of.tolist()) - {-1}
    return sum(int(np.isin(group_of[fold_of == k], group_of[fold_of != k]).sum()) for k in folds)


def _audit(data: Data, images: sources.Table, stop: Callable[[], bool]) -> Audit:
    test = test_images(data)
    with bar("audit", len(images.ids) + len(test.ids if test else [])) as progress:
        return audit(images, test, data, stop=stop, progress=progress)


def _of_labels(folder: Path, images: sources.Table) -> tuple[list[Finding], float]:
    """Findings about labels from the out-of-fold predictions, and the accuracy of these."""
    ids, logits, targets = results.oof(folder)
    known = np.isin(ids, images.ids)
    logits, targets = logits.take(known), targets[known]
    probabilities = np.empty(logits.shape)
    for rows in blocks(*logits.shape):
        probabilities[rows] = np.exp(log_softmax(logits[rows]))
    right = float((metrics.predictions(logits) == targets).mean()) if len(targets) else 0.0
    names = results.card(folder).class_names
    return labels.find(np.array(ids)[known].tolist(), probabilities, targets, names), right
