"""One command's work from images to results: this shard's answers go to its journal, and who ends last merges them.

The journals lie in a folder beside the result, which goes when the results are written.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from config.errors import DataError
from ensemble.member import Member
from infer.io import journal
from infer.io.inputs import Inputs
from infer.io.journal import Journal
from infer.io.shard import Shard
from infer.prepare import Grid
from infer.runner import Runner
from models import manifest

_MERGED = "answers.f32"
_EVERY = 0.5  # seconds between two words on how far it is


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be answered, by whom, and how. `folder` holds the journals of all shards.

    Images whose likeliest class has less than `retry_deskewed` are looked at again (see `infer.retry_deskewed`).
    """

    runner: Runner
    inputs: Inputs
    grid: Grid
    shard: Shard
    folder: Path
    workers: int = 0
    skip_bad: bool = False
    partial: bool = False
    retry_deskewed: float = 0.0

    @property
    def mine(self) -> Grid:
        """The shard's batches."""
        return self.shard.cut(self.grid, self.runner.unit(self.grid))

    @property
    def place(self) -> Path:
        """The shard's journal."""
        return self._place(self.shard.number)

    def _place(self, number: int) -> Path:
        return self.folder / f"shard_{number}_of_{self.shard.of}"

    def job(self) -> dict[str, Any]:
        """What the answers depend on, as JSON: a resumed run must have been begun with the same."""
        ensemble = self.runner.ensemble
        document = ensemble.model_dump(mode="json", exclude={"members"})
        return {
            "images": hashlib.sha256("\n".join(self.inputs.ids).encode()).hexdigest(),
            "members": _described(ensemble.members),
            "ensemble": document,
            "adaptive": self.runner.adaptive,
            "options": self.runner.options.given(),
            "batch_size": self.grid.size,
            "unit": self.runner.unit(self.grid),
            "retry_deskewed": self.retry_deskewed,
            "partial": self.partial,
            "first_row": min(self.mine.first * self.grid.size, self.grid.count),
        }


@dataclass(frozen=True)
class Done:
    """What this process did: `rows` images in `seconds`, in how many single `passes` through a network, and how many
    images it looked at `again`. `truncated` has a line about each image of which a part was taken, by its row."""

    rows: int
    passes: int
    seconds: float
    again: int
    truncated: Mapping[int, str]


def answer(work: Work, resume: bool, progress: Callable[[int, int], None]) -> Done:
    """Answer what the shard's journal lacks; `told(rows, of)` is called now and then.

    Raises `ConfigError` as `Journal` does, `DataError` for an unreadable image when those are not skipped. A journal
    without answers is removed again.
    """
    unit = work.runner.unit(work.grid) * work.grid.size
    try:
        with Journal(work.place, work.job(), len(work.runner.class_names), unit, resume) as log:
            return _fill(work, log, progress)
    except BaseException:
        _forget_empty(work)
        raise


def _fill(work: Work, log: Journal, progress: Callable[[int, int], None]) -> Done:
    mine, size = work.mine, work.grid.size
    total = max(0, min(mine.last * size, mine.count) - mine.first * size)
    start, begun, passes, looks = time.perf_counter(), log.rows, 0, 0
    truncated: dict[int, str] = {}
    if not log.done and log.rows < total:
        rest = Grid(mine.count, size, mine.first + log.rows // size, mine.last)
        spoken = start
        try:
            for batch in work.runner.stream(
                work.inputs, rest, work.workers, work.skip_bad, truncated if work.partial else None
            ):
                answers, unsure = _looked_again(work, mine.first * size + log.rows, batch.probabilities)
                log.append(answers, batch.errors)
                looks += unsure
                passes += batch.passes
                if time.perf_counter() - spoken > _EVERY:
                    progress(log.rows, total)
                    spoken = time.perf_counter()
        except DataError as error:
            again = "; then add --resume to go on" if log.rows else ""
            raise DataError(f"{error}{again}") from error
    progress(total, total)
    log.finish()
    return Done(log.rows - begun, passes, time.perf_counter() - start, looks, truncated)


def _looked_again(work: Work, first: int, answers: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """The answers to the images from row `first` on, those that are not sure improved, and how many these are."""
    if not work.retry_deskewed:
        return answers, 0
    from infer.retry_deskewed import retry_deskewed

    images = [work.inputs.read(first + row) for row in range(len(answers))]

    def predict(inputs: Inputs) -> NDArray[np.float32]:
        return work.runner.predict_inputs(inputs).probabilities

    return retry_deskewed(predict, images, answers, work.retry_deskewed, work.partial)


def _forget_empty(work: Work) -> None:
    """Remove a journal that holds nothing, so that the next start is a first one."""
    answers = work.place / "answers.f32"
    if not journal.is_done(work.place) and not (answers.exists() and answers.stat().st_size):
        shutil.rmtree(work.place, ignore_errors=True)
        if work.folder.is_dir() and not any(work.folder.iterdir()):
            work.folder.rmdir()


@contextmanager
def merged(work: Work) -> Iterator[tuple[NDArray[np.float32], Mapping[int, str]] | None]:
    """The answers of all shards, or None where one is not done yet: the process that ends last gets them.

    (float32 `[N, C]` mapped from disk, errors by row). The folder is removed when the block ends well.
    """
    with filelock.FileLock(work.folder / "lock"):
        places = [work._place(number) for number in range(work.shard.of)]
        if not all(journal.is_done(folder) for folder in places):
            yield None
            return
        yield _joined(work, places)
        shutil.rmtree(work.folder)


def _joined(work: Work, places: list[Path]) -> tuple[NDArray[np.float32], Mapping[int, str]]:
    classes = len(work.runner.class_names)
    errors = {row: text for folder in places for row, text in journal.read_errors(folder).items()}
    if len(places) == 1:
        return journal.read_answers(places[0], classes), errors
    with (work.folder / _MERGED).open("wb") as target:
        for folder in places:
            with (folder / _MERGED).open("rb") as source:
                shutil.copyfileobj(source, target)
    return journal.read_answers(work.folder, classes), errors


def _described(members: Sequence[Member]) -> list[dict[str, Any]]:
    """What members are and hold, wherever they lie."""
    return [
        {**member.model_dump(mode="json", exclude={"path", "group"}), "content": _fingerprint(member.path)}
        for member in members
    ]


def _fingerprint(path: Path) -> str:
    """A short word for what a checkpoint, an `.onnx` or an `.mlpackage` holds."""
    if path.is_file():
        return manifest.sha256(path)[:16]
    listed = path / manifest.NAME
    files = [listed] if listed.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return hashlib.sha256("".join(map(manifest.sha256, files)).encode()).hexdigest()[:16]
