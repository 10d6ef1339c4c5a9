"""What the processes that train one fold together exchange on the host: decisions, errors, and before each step the
weights of their images and whether to stop. With one process nothing is exchanged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from backends.group import Group
from config import errors
from config.errors import ConfigError, Interrupted, TandemError
from data.loading.loader import Loaded

_Value = TypeVar("_Value")
_STOP, _OVERDUE, _FAILED = range(3)  # flags that a process sends beside the weights of its images


def decided(group: Group, function: Callable[[], _Value]) -> _Value:
    """What `function` returns on rank 0, which alone calls it: plain values and arrays. Its error is raised on all."""
    if group.world_size == 1:
        return function()
    value, error = _attempted(function) if group.rank == 0 else (None, None)
    value, fault = group.broadcast((value, _described(error)))
    if error:
        raise _mark_shared(error)
    if fault:
        kind, text = fault
        raise _error(kind, text, 0)
    return cast(_Value, value)


def together(group: Group, function: Callable[[], _Value]) -> _Value:
    """What `function` returns on each rank; where it raises on some, all raise the error of the first of these."""
    if group.world_size == 1:
        return function()
    value, error = _attempted(function)
    _raise_first(group, error)
    return cast(_Value, value)


def any_of(group: Group, flag: bool) -> bool:
    """Whether a flag is set on any rank."""
    return bool(group.gather(np.array([flag]), even=True).any())


def share(batch: int, group: Group) -> int:
    """The images of a batch that each process has; `ConfigError` where the processes do not divide it."""
    each, left = divmod(batch, group.world_size)
    if left or not each:
        near = " or ".join(str(n * group.world_size) for n in (each, each + 1) if n)
        raise ConfigError(
            f"train.batch_size: a batch of {batch} is not divided by {group.world_size} processes; choose {near}"
        )
    return each


class Ranks:
    """This process among those of `group`. `stop_requested` and `overdue` say whether the user wants to stop and
    whether a checkpoint is due by the clock; a yes of any rank before a step holds for all ranks after it."""

    def __init__(self, group: Group, stop_requested: Callable[[], bool], overdue: Callable[[], bool]):
        self.group = group
        self._ask = {_STOP: stop_requested, _OVERDUE: overdue}
        self._agreed = [False, False, False]

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.group.rank == 0

    def stop_requested(self) -> bool:
        """Whether to stop after this step."""
        return self._says(_STOP)

    def overdue(self) -> bool:
        """Whether a checkpoint is due by the clock."""
        return self._says(_OVERDUE)

    def batches(self, mine: Iterator[Loaded], order: NDArray[np.int64], first: int, size: int) -> Iterator[Loaded]:
        """The batches of an epoch from `first` on: the images of this rank, index and weight of the whole batch.

        `order` is that of all ranks, `size` the whole batch's. An error of one loader is raised on all ranks.
        """
        if self.group.world_size == 1:
            yield from mine
            return
        for start in range(first * size, len(order), size):
            loaded, error = _attempted(lambda: next(mine))
            weight = np.zeros(size // self.group.world_size, np.float32) if loaded is None else loaded.weight
            flags = np.array([*(self._ask[flag]() for flag in (_STOP, _OVERDUE)), loaded is None], np.float32)
            rows = self.group.gather(np.concatenate([flags, weight])[None], even=True)
            self._agreed = [bool(rows[:, flag].any()) for flag in range(len(flags))]
            if loaded is None or self._agreed[_FAILED]:
                _raise_first(self.group, error)
                raise RuntimeError("a process failed without an error")  # cannot be: one of them has it
            yield Loaded(loaded.images, order[start : start + size], rows[:, len(flags) :].reshape(-1))
            del loaded

    def _says(self, flag: int) -> bool:
        return self._ask[flag]() if self.group.world_size == 1 else self._agreed[flag]

    def all_lines(self, lines: Sequence[str]) -> list[str]:
        """The lines of all ranks, by rank."""
        return list(lines) if self.group.world_size == 1 else _gathered(self.group, lines)


def _gathered(group: Group, values: Sequence[Any]) -> list[Any]:
    """Plain values of all ranks, by rank."""
    text = "".join(json.dumps(value) + "\n" for value in values)
    rows = group.gather(np.frombuffer(text.encode(), np.uint8))
    return [json.loads(line) for line in rows.tobytes().decode().splitlines()]


def _attempted(function: Callable[[], _Value]) -> tuple[_Value | None, Exception | None]:
    try:
        return function(), None
    except Exception as error:
        return None, error


def _described(error: Exception | None) -> tuple[str, str] | None:
    """The kind and the text of an error, to be sent to other ranks."""
    if error is None:
        return None
    if isinstance(error, Interrupted):
        return type(error).__name__, str(error.folder)
    known = isinstance(error, TandemError)
    return (type(error).__name__, str(error)) if known else ("GroupLost", f"{type(error).__name__}: {error}")


def _error(kind: str, text: str, rank: int) -> Exception:
    """The error of another rank."""
    if kind == Interrupted.__name__:
        return Interrupted(Path(text))
    error: TandemError = getattr(errors, kind)(f"rank {rank}: {text}" if rank else text)
    error.on_all_ranks = True
    return error


def _raise_first(group: Group, error: Exception | None) -> None:
    """Raise on all ranks the error of the first that has one; nothing where none has."""
    fault = _described(error)
    faults = _gathered(group, [[group.rank, *fault]] if fault else [])
    if not faults:
        return
    rank, kind, text = faults[0]
    if error is not None and rank == group.rank:
        raise _mark_shared(error)
    raise _error(kind, text, rank) from error


def _mark_shared(error: Exception) -> Exception:
    if isinstance(error, TandemError):
        error.on_all_ranks = True
    return error
