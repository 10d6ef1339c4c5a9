"""What a campaign does about a fold that cannot be trained: a second try in smaller portions, then it is left out.

`failed.yaml` in the fold's folder keeps the reason, and one in the campaign's folder those of all.
"""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any

from config.errors import Diverged, OutOfMemory, WeightsError
from training.loop import memory
from training.policy import optimizer
from training.run import fold, results, run_dir
from training.run.failures import FAILED, left_out

# Faults of one member. Others, such as an image that vanished or a full disk, would stop the next one too.
ITS_OWN = (OutOfMemory, Diverged, WeightsError)


def attempt(job: fold.Job, number: int) -> None:
    """Train one fold, or leave it out where that fails by a fault of its own.

    Where the memory runs out, `fold` halves the micro-batch as often as it can. A fold that diverges goes on once from
    its last checkpoint at half the micro-batch.
    """
    folder = job.folder / f"fold_{number}"
    try:
        try:
            fold.train(job, number)
        except Diverged:
            if not _halve(job, number, folder):
                raise
            fold.train(job, number)
    except ITS_OWN as error:
        run_dir.write_yaml(folder / FAILED, {**results.read_yaml(folder / FAILED), "left_out": True})
        print(f"{folder}: left out: {error}")


def forget(folder: Path) -> None:
    """Let a fold be tried again."""
    (folder / FAILED).unlink(missing_ok=True)


def collect(campaign: Path, folders: list[Path]) -> list[dict[str, Any]]:
    """The failures among fold folders, also written to the campaign's `failed.yaml`, which is absent where none are."""
    found = [row for folder in folders if (row := left_out(folder))]
    if found:
        run_dir.write_yaml(campaign / FAILED, found)
    else:
        (campaign / FAILED).unlink(missing_ok=True)
    return found


def _halve(job: fold.Job, number: int, folder: Path) -> bool:
    """Have the fold go on at half the micro-batch; False where it is one image already."""
    batch = math.gcd(*(stage.batch for stage in fold.load_data(job, number).stages))
    size = memory.remembered(folder) or optimizer.memory(job.settings.train).size(batch)
    if size <= 1:
        return False
    half = max(part for part in range(1, size // 2 + 1) if batch % part == 0)
    memory.remember(folder, half)
    gc.collect()
    print(f"{folder}: diverged; once more from the last checkpoint with {half} images at a time")
    return True
