"""What processes tell each other on the host, between threads that stand for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.group import ALONE
from config.errors import ConfigError, DataError, Interrupted
from data.loading.loader import Loaded
from training.distributed import ranks

SECONDS = 20


class Threads:
    """One of several threads as a process of a group."""

    def __init__(self, rank: int, world_size: int, barrier: threading.Barrier, held: dict[int, Any]):
        self.rank, self.world_size = rank, world_size
        self._barrier, self._held = barrier, held

    def _all(self, value: Any) -> list[Any]:
        self._held[self.rank] = value
        self._barrier.wait(SECONDS)
        found = [self._held[rank] for rank in range(self.world_size)]
        self._barrier.wait(SECONDS)
        return found

    def gather(self, rows: NDArray[Any], even: bool = False) -> NDArray[Any]:
        parts = self._all(rows)
        assert not even or len({len(part) for part in parts}) == 1
        return np.concatenate([part for part in parts if len(part)] or parts[:1])

    def broadcast(self, value: Any) -> Any:
        return self._all(value)[0]

    def close(self) -> None:
        pass


def each(count: int, function: Callable[[Threads], Any]) -> list[Any]:
    """What the function returns or raises in each of `count` threads."""
    barrier, held = threading.Barrier(count), dict[int, Any]()
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(function, Threads(rank, count, barrier, held)) for rank in range(count)]
        return [future.exception(SECONDS) or future.result() for future in futures]


def test_rank_0_alone_decides() -> None:
    asked: list[int] = []

    def decide(group: Threads) -> int:
        return ranks.decided(group, lambda: asked.append(group.rank) or 7)

    assert each(3, decide) == [7, 7, 7]
    assert asked == [0]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataError("no such image"), "DataError: no such image"),
        (Interrupted(Path("run")), "Interrupted: run"),
        (ZeroDivisionError("by zero"), "GroupLost: ZeroDivisionError: by zero"),
    ],
)
def test_what_rank_0_raises_all_raise(error: Exception, expected: str) -> None:
    def fail() -> None:
        raise error

    own, *others = each(3, lambda group: ranks.decided(group, fail))
    assert own is error
    assert [f"{type(other).__name__}: {other}" for other in others] == [expected] * 2


def test_the_first_of_those_that_fail_is_told_by_all() -> None:
    def work(group: Threads) -> int:
        if group.rank:
            raise ConfigError(f"of {group.rank}")
        return 1

    errors = each(3, lambda group: ranks.together(group, lambda: work(group)))
    assert [type(error) for error in errors] == [ConfigError] * 3
    assert [str(error) for error in errors] == ["rank 1: of 1", "of 1", "rank 1: of 1"]
    assert all(error.on_all_ranks for error in errors)
    assert each(2, lambda group: ranks.together(group, lambda: group.rank)) == [0, 1]


def batches(group: Threads, fails: int) -> Iterator[Loaded]:
    """Two images of each of three batches; the first of rank 0's first one could not be read."""
    for number in range(3):
        if number == 1 and group.rank == fails:
            raise DataError("unreadable")
        weight = np.array([float(number + group.rank > 0), 1], np.float32)
        yield Loaded(np.full((2, 1, 1, 3), group.rank, np.uint8), np.zeros(2, np.int64), weight)


def test_each_batch_is_known_as_a_whole_and_one_request_stops_all() -> None:
    def follow(group: Threads) -> list[tuple[Any, ...]]:
        asked = iter([False, group.rank == 1, False])
        one = ranks.Ranks(group, lambda: next(asked), lambda: group.rank == 0)
        order = np.arange(10, 22)
        return [
            (int(b.images[0, 0, 0, 0]), b.index.tolist(), b.weight.tolist(), one.stop_requested(), one.overdue())
            for b in one.batches(batches(group, -1), order, 0, 4)
        ]

    first, second = each(2, follow)
    assert [row[0] for row in (*first, *second)] == [0] * 3 + [1] * 3
    assert [row[1:] for row in first] == [row[1:] for row in second]
    assert first[0][1:] == ([10, 11, 12, 13], [0, 1, 1, 1], False, True)
    assert [row[3] for row in first] == [False, True, False]


def test_an_image_that_ends_the_training_of_one_ends_it_for_all() -> None:
    def follow(group: Threads) -> list[Loaded]:
        one = ranks.Ranks(group, lambda: False, lambda: False)
        return list(one.batches(batches(group, 1), np.arange(12), 0, 4))

    assert [str(error) for error in each(2, follow)] == ["rank 1: unreadable", "unreadable"]


def test_a_batch_that_is_not_divided_names_its_neighbours() -> None:
    error = each(4, lambda group: ranks.share(13, group))[0]
    assert isinstance(error, ConfigError)
    assert "a batch of 13 is not divided by 4 processes; choose 12 or 16" in str(error)
    assert ranks.share(13, ALONE) == 13
