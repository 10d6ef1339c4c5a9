"""Which part of an epoch bounds a run, and what a user can change about it."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from config.schema import Settings
from data.loading.pace import THREADS_DO
from data.sources import remote

_WAITING_TOO_LONG, _SAVING_TOO_LONG = 0.1, 0.1


def shares(row: Mapping[str, float]) -> str:
    """The shares of an epoch's time, for its line."""
    return f"waiting {row['waiting']:.0%}  computing {row['computing']:.0%}  saving {row['saving']:.0%}"


def advice(row: Mapping[str, float], settings: Settings, cores: int) -> str:
    """What to change where more than a tenth of the epoch went into waiting for data, or into saving; else ""."""
    if row["waiting"] > _WAITING_TOO_LONG:
        return f"  the device waits for data {row['waiting']:.0%} of the time: {'; '.join(_faster(settings, cores))}"
    if row["saving"] > _SAVING_TOO_LONG:
        return f"  saving takes {row['saving']:.0%} of the time: raise --checkpoint.every_epochs or every_minutes"
    return ""


def _faster(settings: Settings, cores: int) -> list[str]:
    """Ways to more images a second, the best first."""
    data, level = settings.data, settings.augment.level
    ways = []
    if data.streaming and remote.url(data.root):
        ways.append("shards at a URL: keep more of them with --data.shard_cache_gb, or use storage nearby")
    if 0 < data.workers < cores:
        ways.append(f"raise --data.workers ({data.workers} of {cores} cores), or 0 for all")
    if cores > THREADS_DO and data.processes == 0 and sys.platform != "win32":
        ways.append("prepare images in processes with --data.processes auto")
    if cores > THREADS_DO and data.processes == "auto" and sys.platform == "darwin":
        ways.append(f"prepare images in processes with --data.processes {cores}")
    if not data.cache_gb and not data.streaming:
        ways.append("keep decoded images with --data.cache_gb 20")
    ways.append("store the images smaller on disk")
    if level not in ("none", "minimal"):
        ways.append(f"choose a lighter --augment.level than {level}")
    return ways
