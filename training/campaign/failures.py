"""A campaign's handling of a fold that fails: a second try with a smaller micro-batch, then it is left out."""

from __future__ import annotations

import gc
import math
from pathlib import Path

from config.errors import Diverged, OutOfMemory, WeightsError
from config.text import counted
from training.loop import memory
from training.policy import optimizer
from training.run import fold, results, run_dir
from training.run.outcome import FAILED

# Faults of one member. Others, such as a missing image or a full disk, would stop the next one too.
_MEMBER_FAULTS = (OutOfMemory, Diverged, WeightsError)


def attempt(job: fold.Job, number: int) -> None:
    """Train one fold; leave it out where it fails by a fault of its own.

    Where memory runs out, `fold` halves the micro-batch as often as it can. A fold that diverges is resumed once from
    its last checkpoint at half the micro-batch.
    """
    folder = job.folder / f"fold_{number}"
    for first in (True, False):
        try:
            fold.train(job, number)
            return
        except _MEMBER_FAULTS as error:
            if first and isinstance(error, Diverged) and _halve(job, number, folder):
                continue
            run_dir.write_yaml(folder / FAILED, {**results.read_yaml(folder / FAILED), "left_out": True})
            print(f"{folder}: left out: {error}")
            return


def _halve(job: fold.Job, number: int, folder: Path) -> bool:
    """Halve the fold's micro-batch; False where the network cannot train on fewer images."""
    stages = fold.load_data(job, number).stages
    batch = math.gcd(*(stage.batch for stage in stages))
    size = memory.remembered(folder) or optimizer.memory(job.settings.train).size(batch)
    half = memory.half(size, batch, fold.fewest(job, stages))
    if half:
        memory.remember(folder, half)
        gc.collect()
        print(f"{folder}: diverged; once more from the last checkpoint with {counted(half, 'image')} at a time")
    return bool(half)
