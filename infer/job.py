"""One command's work from images to results: a shard's predictions go to its journal, the last process merges them.

The journals lie in a folder beside the result, which is removed when the results are written.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from config.errors import DataError
from infer.io import journal
from infer.io.inputs import Inputs
from infer.io.journal import Journal
from infer.io.shard import Shard
from infer.prepare import Grid
from infer.runner import Runner
from models import manifest

_EVERY = 0.5  # seconds between two reports of progress


@dataclass(frozen=True, eq=False)
class Work:
    """The images to predict, the runner and its options. `folder` holds the journals of all shards.

    Images whose likeliest class has less than `retry_deskewed` are predicted again (see `infer.retry_deskewed`).
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
    def journals(self) -> list[Path]:
        """The journals of all shards."""
        return [self.folder / f"shard_{number}_of_{self.shard.of}" for number in range(self.shard.of)]

    @property
    def journal(self) -> Path:
        """The shard's journal."""
        return self.journals[self.shard.number]

    def job(self) -> dict[str, Any]:
        """All that the predictions depend on, as JSON: a run can be resumed only with the same."""
        ensemble = self.runner.ensemble
        members = [
            {**member.model_dump(mode="json", exclude={"path", "group"}), "content": _fingerprint(member.path)}
            for member in ensemble.members
        ]
        return {
            "images": hashlib.sha256("\n".join(self.inputs.ids).encode()).hexdigest(),
            "members": members,
            "ensemble": ensemble.model_dump(mode="json", exclude={"members"}),
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
    """The work of this process: `rows` images in `seconds`, with `passes` of images through single networks. `again`
    counts the images predicted twice, `truncated` has a line about each truncated one, by its row."""

    rows: int
    passes: int
    seconds: float
    again: int
    truncated: Mapping[int, str]


def predict_shard(work: Work, resume: bool, progress: Callable[[int, int], None]) -> Done:
    """Predict what the shard's journal lacks; `progress(rows, total)` is called now and then.

    Raises `ConfigError` as `Journal` does, `DataError` for an unreadable image when those are not skipped. A journal
    without rows is removed again, so that the next start is a first one.
    """
    unit = work.runner.unit(work.grid) * work.grid.size
    try:
        with Journal(work.journal, work.job(), len(work.runner.class_names), unit, resume) as log:
            return _fill(work, log, progress)
    except BaseException:
        answers = work.journal / journal.ANSWERS
        if not journal.is_done(work.journal) and not (answers.exists() and answers.stat().st_size):
            shutil.rmtree(work.journal, ignore_errors=True)
            if work.folder.is_dir() and not any(work.folder.iterdir()):
                work.folder.rmdir()
        raise


def _fill(work: Work, log: Journal, progress: Callable[[int, int], None]) -> Done:
    mine, size = work.mine, work.grid.size
    total = max(0, min(mine.last * size, mine.count) - mine.first * size)
    start, begun, passes, again = time.perf_counter(), log.rows, 0, 0
    truncated: dict[int, str] = {}
    if not log.done and log.rows < total:
        rest = Grid(mine.count, size, mine.first + log.rows // size, mine.last)
        reported = start
        try:
            for batch in work.runner.stream(
                work.inputs, rest, work.workers, work.skip_bad, truncated if work.partial else None
            ):
                probabilities, unsure = _retry(work, mine.first * size + log.rows, batch.probabilities)
                log.append(probabilities, batch.errors)
                again += unsure
                passes += batch.passes
                if time.perf_counter() - reported > _EVERY:
                    progress(log.rows, total)
                    reported = time.perf_counter()
        except DataError as error:
            hint = "; then add --resume to go on" if log.rows else ""
            raise DataError(f"{error}{hint}") from error
    progress(total, total)
    log.finish()
    return Done(log.rows - begun, passes, time.perf_counter() - start, again, truncated)


def _retry(work: Work, first: int, probabilities: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """The probabilities of the images from row `first` on, unsure ones predicted again, and how many these are."""
    if not work.retry_deskewed:
        return probabilities, 0
    from infer.retry_deskewed import retry_deskewed

    images = [work.inputs.read(first + row) for row in range(len(probabilities))]

    def predict(inputs: Inputs) -> NDArray[np.float32]:
        return work.runner.predict_inputs(inputs).probabilities

    return retry_deskewed(predict, images, probabilities, work.retry_deskewed, work.partial)


@contextmanager
def merged(work: Work) -> Iterator[tuple[NDArray[np.float32], Mapping[int, str]] | None]:
    """The predictions of all shards, or None where one is not done yet: the process that ends last gets them.

    (float32 `[N, C]` memory-mapped, errors by row). The folder is removed when the block ends without an error.
    """
    with filelock.FileLock(work.folder / "lock"):
        if not all(map(journal.is_done, work.journals)):
            yield None
            return
        errors = {row: text for folder in work.journals for row, text in journal.read_errors(folder).items()}
        folder = work.journal
        if work.shard.of > 1:
            folder = work.folder
            with (folder / journal.ANSWERS).open("wb") as target:
                for shard in work.journals:
                    with (shard / journal.ANSWERS).open("rb") as source:
                        shutil.copyfileobj(source, target)
        yield journal.read_answers(folder, len(work.runner.class_names)), errors
        shutil.rmtree(work.folder)


def _fingerprint(path: Path) -> str:
    """A short hash of the content of a checkpoint, an `.onnx` or an `.mlpackage`."""
    if path.is_file():
        return manifest.sha256(path)[:16]
    listed = path / manifest.NAME
    files = [listed] if listed.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return hashlib.sha256("".join(map(manifest.sha256, files)).encode()).hexdigest()[:16]
