"""What a campaign does about a fold that cannot be trained: a second try in smaller portions, then it is left out.

`failed.yaml` in the fold's folder keeps the reason, and one in the campaign's folder those of all.
"""

from __future__ import annotations

import gc
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from config.errors import Diverged, OutOfMemory, TandemError, WeightsError
from training.loop import memory
from training.policy import optimizer
from training.run import fold, run_dir

FAILED = "failed.yaml"
# Faults of one member. Others, such as an image that vanished or a full disk, would stop the next one too.
ITS_OWN = (OutOfMemory, Diverged, WeightsError)


def attempt(job: fold.Job, number: int) -> dict[str, Any] | None:
    """Train one fold; None where it failed, with its reason kept.

    Where the memory runs out, `fold` halves the micro-batch as often as it can. A fold that diverges goes on once from
    its last checkpoint at half the micro-batch.
    """
    folder = job.folder / f"fold_{number}"
    tried: list[str] = []
    while True:
        try:
            row = fold.train(job, number)
        except ITS_OWN as error:
            tried.append(str(error))
            if isinstance(error, Diverged) and len(tried) == 1 and _halve(job, number, folder):
                continue
            _keep(folder, job, number, error, tried)
            return None
        (folder / FAILED).unlink(missing_ok=True)
        return row


def failed(folder: Path) -> bool:
    """Whether the fold in `folder` was given up."""
    return (folder / FAILED).exists() and not (folder / fold.RESULT).exists()


def forget(folder: Path) -> None:
    """Let a fold be tried again."""
    (folder / FAILED).unlink(missing_ok=True)


def collect(campaign: Path, folders: list[Path]) -> list[dict[str, Any]]:
    """The failures among fold folders, also written to the campaign's `failed.yaml`, which is absent where none are."""
    found = [yaml.safe_load((folder / FAILED).read_text()) for folder in folders if failed(folder)]
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


def _keep(folder: Path, job: fold.Job, number: int, error: TandemError, tried: list[str]) -> None:
    row = {
        "member": job.folder.name,
        "fold": number,
        "error": type(error).__name__,
        "reason": str(error),
        "attempts": len(tried),
        "micro_batch": memory.remembered(folder) or None,
        "engine": job.backend,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    run_dir.write_yaml(folder / FAILED, row)
    print(f"{folder}: left out: {error}")
