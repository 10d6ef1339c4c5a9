"""What the members of a campaign share: the images, their audit, the folds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data import sources
from data.audit import actions
from data.cache.images import Images
from training.campaign.members import Campaign
from training.run import audit, run_dir
from training.run.prepare import FOLDS, describe, fold_numbers, keep_folds, with_vanished


@dataclass(frozen=True)
class SharedData:
    """What the members of a campaign share: images, labels, folds, the numbers of those to train, and the files that
    the audit could not read."""

    table: sources.Table
    images: Images
    fold_of: NDArray[np.int64]
    numbers: list[int]
    doubtful: list[Path]


def open_shared(
    campaign: Campaign, ended: Callable[[list[int]], bool] = lambda _: False, only: int | None = None
) -> SharedData:
    """Read the images' table, audit it, and read the folds, which are drawn and kept where they are not there yet.

    Where `ended` says of the folds' numbers that nothing is left to do, no image is looked at. With `only` that fold
    alone is to be trained.
    """
    settings, folder = campaign.settings, campaign.folder
    if only is not None:
        settings = settings.model_copy(update={"folds": settings.folds.model_copy(update={"train": (only,)})})
    table = actions.load(settings.data).table
    print(*describe(settings, table), sep="\n")
    images = Images.of(settings.data, table.turns)
    drawn = (folder / FOLDS).exists()
    if drawn:
        known = with_vanished(settings, table, folder)
        fold_of = keep_folds(settings, known, folder)
        numbers = fold_numbers(settings, fold_of)
        if ended(numbers):
            return SharedData(known, images, fold_of, numbers, [])
    table, doubtful = audit.before(settings, table, campaign.stop_requested, lambda: folder)
    with run_dir.run_lock(folder):
        table = with_vanished(settings, table, folder)
        fold_of = keep_folds(settings, table, folder)
    return SharedData(table, images, fold_of, fold_numbers(settings, fold_of), doubtful)
