"""Shards streamed by several processes: the curve of one process, and another number of processes on resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backends.group import ALONE
from tests.distributed import cases
from tests.distributed.ranks import together
from tests.distributed.test_runs import curve, words
from tests.unit import shards


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = shards.write(tmp_path_factory.mktemp("shards") / "data", 8, 6)
    return Path(f"file://{root}/{{000..007}}.tar")


def streamed(url: Path, out: Path) -> list[str]:
    more = ("--data.streaming", "true", "--data.streams", "4", "--data.shuffle_buffer", "16")
    return words(
        url,
        out,
        *more,
        "--data.shard_cache_gb",
        "1e-5",
        "--train.epochs",
        "2",
        "--swa.epochs",
        "0",
        "--train.micro_batch",
        "null",
    )


@pytest.fixture(scope="module")
def alone(url: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.run(ALONE, streamed(url, tmp_path_factory.mktemp("one")))


def test_two_processes_stream_what_one_does(alone: Path, url: Path, tmp_path: Path) -> None:
    folders = together(2, cases.run, streamed(url, tmp_path))
    np.testing.assert_allclose(curve(folders[0]), curve(alone), rtol=1e-5)


def test_a_run_stopped_inside_a_shard_on_two_processes_goes_on_with_one(alone: Path, url: Path, tmp_path: Path) -> None:
    stopped = together(2, cases.stopped, streamed(url, tmp_path), 4)
    assert len(curve(Path(stopped[0]))) == 1, "in the second epoch"
    folder = cases.run(ALONE, streamed(url, tmp_path))
    assert str(folder) == stopped[0]
    np.testing.assert_allclose(curve(folder), curve(alone), rtol=1e-5)
