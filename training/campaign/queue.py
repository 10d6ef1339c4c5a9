"""Who works on what in a folder that processes and machines share: nothing is done twice, ended processes are replaced.

An item is a folder. Its owner holds two things: a file lock, which the operating system releases with the process, and
the newest of the item's numbered claims. A claim's file is made by exclusive creation, so that one of two processes
fails; only the newest claim counts. While its owner lives, the file changes: its beat is counted up.

On one host the lock decides: a free lock means that the owner has ended. The claim of another host is taken over, by
making the next one, when it has not changed for `PATIENCE` seconds of this process's clock; no two clocks are compared.
An owner that was only slow, such as a laptop that slept, sees the newer claim at its next beat and stops.
A shared folder must create exclusively and rename atomically, and show a change within `PATIENCE`.
"""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from config.places import atomic_write
from training.run import run_dir

PATIENCE = 180.0
BEAT = 15.0
POLL = 2.0
_CLAIM = ".claim_"


@dataclass(frozen=True)
class Owner:
    """Who holds an item: `host` tells machines apart, `name` is for people; `beat` counts up while it works."""

    host: str
    name: str
    held: bool = True
    beat: int = 0


class Claim:
    """An item that this process holds; a context. `lost` becomes True when another host has taken it over."""

    def __init__(self, folder: Path, number: int, lock: FileLock):
        self.folder, self.lost = folder, False
        self._number, self._lock, self._owner = number, lock, _me()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name=f"beat {folder.name}", daemon=True)

    def __enter__(self) -> Claim:
        self._write()
        (self.folder / run_dir.LOCK_OWNER).write_text(self._owner.name)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._owner = replace(self._owner, held=False)
        try:
            self._write()
            (self.folder / run_dir.LOCK_OWNER).unlink(missing_ok=True)
        finally:
            self._lock.release()

    def beat(self) -> None:
        """Show that this process lives, and check whether it still holds the item."""
        self.lost = self.lost or _newest(self.folder) > self._number
        if not self.lost:
            self._owner = replace(self._owner, beat=self._owner.beat + 1)
            self._write()

    def _keep_alive(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                self.beat()
            except OSError:  # a share that is away for a moment; PATIENCE allows for several
                continue

    def _write(self) -> None:
        atomic_write(_path(self.folder, self._number), json.dumps(asdict(self._owner)))


class Worklist:
    """Items in the order in which they are taken; `done` says whether an item is finished."""

    def __init__(
        self,
        folders: Sequence[Path],
        done: Callable[[Path], bool],
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ):
        self.folders, self.done = list(folders), done
        self._clock, self._pause = clock, pause
        self._last_beats: dict[Path, tuple[int, Owner, float]] = {}

    def left(self) -> list[Path]:
        """The items that are not done."""
        return [folder for folder in self.folders if not self.done(folder)]

    def take(self) -> Claim | None:
        """The first item that is neither done nor held by a living process, as a claim to enter; None for none."""
        return next(filter(None, map(self._try, self.left())), None)

    def owners(self) -> dict[Path, str]:
        """Who holds the items that are not done, as far as they say."""
        owners = {folder: _read(folder, _newest(folder)) for folder in self.left()}
        return {folder: owner.name for folder, owner in owners.items() if owner.held and owner.name}

    def outlasted(self, stop_requested: Callable[[], bool]) -> bool:
        """Wait until others have done all items, or none of them has worked for `PATIENCE` seconds; whether all are
        done."""
        working = self._clock()
        while (left := self.left()) and self._clock() - working < PATIENCE and not stop_requested():
            if any(self._held(folder) for folder in left):
                working = self._clock()
            self._pause(POLL)
        return not left

    def each(self, stop_requested: Callable[[], bool], quiet: bool = False) -> Iterator[Claim]:
        """Claims, one after another, until all items are done; waits for items that others hold, and prints that once
        unless `quiet`."""
        announced: dict[Path, str] = {}
        while self.left() and not stop_requested():
            claim = self.take()
            if claim:
                yield claim
                continue
            for folder, owner in ({} if quiet else self.owners()).items():
                if announced.get(folder) != owner:
                    print(f"waiting for {folder}: {owner} works on it")
                    announced[folder] = owner
            self._pause(POLL)

    def _try(self, folder: Path) -> Claim | None:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        number = _newest(folder)
        free = not self._lives(folder, number) and _create(folder, number + 1)
        if not free or self.done(folder):  # whoever had it may have ended it in between
            lock.release()
            return None
        return Claim(folder, number + 1, lock)

    def _held(self, folder: Path) -> bool:
        lock = FileLock(folder / ".lock")
        try:
            with lock.acquire(timeout=0):
                return self._lives(folder, _newest(folder))
        except Timeout:
            return True

    def _lives(self, folder: Path, number: int) -> bool:
        """Whether the owner of a claim, whose lock this process has, may still work on another host."""
        owner = _read(folder, number) if number else Owner("", "", held=False)
        if not owner.held or owner.host == _me().host:
            return False
        now, last = self._clock(), self._last_beats.get(folder)
        if last is None or last[:2] != (number, owner):
            self._last_beats[folder] = (number, owner, now)
            return True
        return now - last[2] < PATIENCE


@contextmanager
def alone(folder: Path, stop_requested: Callable[[], bool], quiet: bool = False) -> Iterator[Claim | None]:
    """Hold `folder` after waiting for its owner, which is printed unless `quiet`; None where a stop was requested
    meanwhile."""
    for claim in Worklist([folder], done=lambda _: False).each(stop_requested, quiet):
        with claim:
            yield claim
        return
    yield None


def _me() -> Owner:
    host = socket.gethostname()
    return Owner(f"{host} {uuid.getnode():012x}", run_dir.owner())


def _path(folder: Path, number: int) -> Path:
    return folder / f"{_CLAIM}{number:04d}"


def _newest(folder: Path) -> int:
    numbers = [path.name.removeprefix(_CLAIM) for path in folder.glob(f"{_CLAIM}*")]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def _create(folder: Path, number: int) -> bool:
    """Make a claim's file; False where another process was first."""
    try:
        _path(folder, number).open("x").close()
    except FileExistsError:
        return False
    return True


def _read(folder: Path, number: int) -> Owner:
    """The owner that a claim names; one without a name where its maker has not written it yet."""
    try:
        return Owner(**json.loads(_path(folder, number).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return Owner("", "")
