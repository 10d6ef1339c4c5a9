"""Keeps members in memory: all of them, or one after another where they do not fit. One thread does all their work.

Whether they fit is measured while they are opened. That one thread also makes a runner safe to use from many, since
MLX's arrays belong to the thread that made them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import psutil

from config.errors import BackendUnavailable, ConfigError, OutOfMemory
from ensemble.member import Member
from ensemble.options import NONE_GIVEN, RunOptions
from infer import runtimes
from infer.runtimes import RUNTIMES, Describes, Predictor
from models.card import Card, check_classes

Keep = Literal["auto", "all", "one"]
_KEYWORDS = {"provider": "providers", "compute_unit": "compute_units"}  # as the runtimes call them
_Result = TypeVar("_Result")


def free_memory() -> int:
    """Bytes that this machine can still allocate without swapping."""
    return int(psutil.virtual_memory().available)


def choose_runtimes(members: Sequence[Member], shared: RunOptions = NONE_GIVEN) -> list[str]:
    """The runtime of each member; nothing is opened.

    `ConfigError` for a runtime or an option of a member that does not fit, and for a shared option that no runtime of
    the members takes.
    """
    chosen = [runtimes.choose(member.path, member.runtime) for member in members]
    for member, runtime in zip(members, chosen, strict=True):
        _options(str(member), runtime, member.options, shared)
    running = sorted(set(chosen))
    for key in shared.given():
        if not any(key in RUNTIMES[name].options for name in running):
            fitting = " or ".join(name for name, runtime in RUNTIMES.items() if key in runtime.options)
            raise ConfigError(
                f"--{key}: is for members on {fitting}, and these run on {', '.join(running)}; leave it out"
            )
    return chosen


def open_one(member: Member, shared: RunOptions = NONE_GIVEN) -> Predictor:
    """Open one member, with its own options before the `shared` ones."""
    runtime = runtimes.choose(member.path, member.runtime)
    chosen = _options(str(member), runtime, member.options, shared)
    named = {_KEYWORDS.get(key, key): value for key, value in chosen.items()}
    return runtimes.open(member.path, member.runtime, **named)


def _options(name: str, runtime: str, local: RunOptions, shared: RunOptions) -> dict[str, Any]:
    """The options that the member `name` is opened with; its `local` ones override the `shared` ones.

    `ConfigError` for a local option that its runtime does not take; shared ones that it does not take are left out.
    """
    takes = RUNTIMES[runtime].options
    wrong = [key for key in local.given() if key not in takes]
    if wrong:
        raise ConfigError(f"{name}: {runtime} takes no option {wrong[0]!r}; it takes {', '.join(takes) or 'none'}")
    return {key: value for key, value in shared.given().items() if key in takes} | local.given()


class ModelCache:
    """The members of an ensemble; `keep` says which stay open: `all`, `one` at a time, or `auto`, all that fit.

    With `auto` the machine's free memory is measured around each opening; when less is left than twice what the
    largest member took, or a device says that it is full, members are opened one at a time from then on. Raises what
    `open_one` and `check_classes` raise, with nothing left open. `described` has a line for each member whose runtime
    chose a device and a precision.
    """

    def __init__(self, members: Sequence[Member], shared: RunOptions = NONE_GIVEN, keep: Keep = "auto"):
        self.members, self._shared = list(members), shared
        self.runtimes = choose_runtimes(members, shared)
        self._open: dict[int, Predictor] = {}
        self.described: list[str] = []
        self._thread, self._process = ThreadPoolExecutor(1, "tandem-compute"), os.getpid()
        try:
            self.cards: list[Card] = self.run(lambda: self._open_all(keep))
        except BaseException:
            self.close()
            raise

    @property
    def resident(self) -> bool:
        """Whether all stay open."""
        return len(self._open) == len(self.members)

    def run(self, work: Callable[[], _Result]) -> _Result:
        """Do `work` in the members' thread and wait for it; raises as `check_process`."""
        self.check_process()
        return self._thread.submit(work).result()

    def check_process(self) -> None:
        """`BackendUnavailable` in a process that was forked since: it lacks the threads of the members and of their
        runtimes, and would wait for them forever."""
        if os.getpid() != self._process:
            raise BackendUnavailable(
                f"{self.members[0]}: was opened in process {self._process}, and this is process {os.getpid()}, forked "
                "from it, in which no network answers; call infer.load in each process, after the fork"
            )

    @contextmanager
    def held(self, places: Sequence[int]) -> Iterator[dict[int, Predictor]]:
        """The predictors of these members, in the members' thread; those that do not stay are closed after it."""
        passing = {
            number: open_one(self.members[number], self._shared) for number in places if number not in self._open
        }
        try:
            yield {number: self._open.get(number) or passing[number] for number in places}
        finally:
            for predictor in passing.values():
                predictor.close()

    def close(self) -> None:
        """Free all members; the thread ends. In a forked process they are the parent's, and nothing is done."""
        if os.getpid() != self._process:
            return
        self._thread.submit(self._release).result()
        self._thread.shutdown()

    def _open_all(self, keep: Keep) -> list[Card]:
        """Open each member, leave open those that may stay, and return their cards."""
        cards: list[Card] = []
        staying, largest = keep != "one", 0
        for number in range(len(self.members)):
            before = free_memory()
            staying = self._add(number, staying, keep) and staying
            predictor = self._open[number]
            cards.append(predictor.card)
            if isinstance(predictor, Describes):
                self.described.append(predictor.describe())
            check_classes([(str(m), card.class_names) for m, card in zip(self.members, cards, strict=False)])
            largest = max(largest, before - free_memory())
            staying = staying and (keep == "all" or free_memory() >= 2 * largest)
            if not staying and len(self.members) > 1:
                self._release()
        return cards

    def _add(self, number: int, staying: bool, keep: Keep) -> bool:
        """Open one more member, alone where the device has no room beside the others; return False in that case."""
        try:
            self._open[number] = open_one(self.members[number], self._shared)
        except OutOfMemory:
            if not self._open or keep == "all" or not staying:
                raise
            self._release()
            self._open[number] = open_one(self.members[number], self._shared)
            return False
        return True

    def _release(self) -> None:
        for predictor in self._open.values():
            predictor.close()
        self._open.clear()
