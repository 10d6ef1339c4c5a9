"""The answers of an unfinished run on disk, so that a run that dies goes on where it stopped, with the same bytes.

A folder for each shard: `job.json` (what was asked), `answers.f32` (float32 `[rows, C]` in input order, appended),
`errors.jsonl` (unreadable images), `done`. What is made of the answers in the end is `outputs`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from config.errors import CheckpointError, ConfigError
from config.places import atomic_write

_JOB, _ANSWERS, _ERRORS, _DONE = "job.json", "answers.f32", "errors.jsonl", "done"


class Journal:
    """A shard's answers, held by one process at a time; a context manager.

    `job` says what was asked: a journal that was begun for another is refused with what differs. `unit` rows are
    answered together: what a killed run left behind is cut to whole units. `rows` counts those that are kept, `done`
    says that none is missing. `ConfigError` for answers without `resume`, or while another process writes here.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any], classes: int, unit: int, resume: bool):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._classes = folder, classes
        self._lock = filelock.FileLock(folder / "lock")
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise ConfigError(f"{folder}: another process is answering these images; wait until it ends") from error
        try:
            self._check(job, resume)
            self.done = is_done(folder)
            self.rows = self._cut(unit)
        except BaseException:
            self._lock.release()
            raise
        self._answers = (folder / _ANSWERS).open("ab")
        self._errors = (folder / _ERRORS).open("a", encoding="utf-8")

    def append(self, probabilities: NDArray[np.float32], errors: Mapping[int, str]) -> None:
        """Add the next rows, float32 `[n, C]`; `errors` by the row's number in the whole input."""
        if errors:
            self._errors.writelines(json.dumps({"row": row, "error": text}) + "\n" for row, text in errors.items())
            self._errors.flush()
        self._answers.write(np.ascontiguousarray(probabilities, np.float32).tobytes())
        self._answers.flush()
        self.rows += len(probabilities)

    def finish(self) -> None:
        """Say that the shard is complete."""
        atomic_write(self.folder / _DONE, b"")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answers.close()
        self._errors.close()
        self._lock.release()

    def _check(self, job: Mapping[str, Any], resume: bool) -> None:
        file, answers = self.folder / _JOB, self.folder / _ANSWERS
        if not file.exists() or not (is_done(self.folder) or (answers.exists() and answers.stat().st_size)):
            atomic_write(file, json.dumps(dict(job), indent=1).encode())
            return
        begun = _read(file)
        if not resume:
            raise ConfigError(
                f"{self.folder.parent}: holds the answers of a run that did not finish; add --resume to go on with it, "
                "or remove that folder to begin anew"
            )
        differing = [key for key in job if begun.get(key) != job[key]]
        if differing:
            raise ConfigError(
                f"{self.folder.parent}: was begun with other {', '.join(differing)}; give the same again, "
                "or remove that folder to begin anew"
            )

    def _cut(self, unit: int) -> int:
        """Drop what follows the last whole unit, unless the shard is complete; the rows that are kept."""
        answers, errors = self.folder / _ANSWERS, self.folder / _ERRORS
        if self.done:
            return answers.stat().st_size // (4 * self._classes)
        size = answers.stat().st_size if answers.exists() else 0
        rows_kept = size // (4 * self._classes) // unit * unit
        if size:
            with answers.open("r+b") as file:
                file.truncate(rows_kept * 4 * self._classes)
        begin = _read(self.folder / _JOB)["first_row"]
        kept_errors = {row: text for row, text in read_errors(self.folder).items() if row < begin + rows_kept}
        if errors.exists():
            lines = [json.dumps({"row": row, "error": text}) + "\n" for row, text in kept_errors.items()]
            atomic_write(errors, "".join(lines).encode())
        return rows_kept


def is_done(folder: Path) -> bool:
    """Whether the shard in `folder` is complete."""
    return (folder / _DONE).exists()


def read_answers(folder: Path, classes: int) -> NDArray[np.float32]:
    """float32 `[rows, C]` of a shard, mapped from the disk; what is written into it stays in memory."""
    file = folder / _ANSWERS
    if not file.stat().st_size:
        return np.zeros((0, classes), np.float32)
    return np.memmap(file, np.float32, "c").reshape(-1, classes)


def read_errors(folder: Path) -> dict[int, str]:
    """Why an image could not be read, by its row in the whole input; a line that a killed run left short is dropped."""
    file = folder / _ERRORS
    if not file.exists():
        return {}
    lines = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    return {entry["row"]: entry["error"] for entry in map(json.loads, lines)}


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file}: is damaged; remove {file.parent.parent} to begin anew") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{file}: is damaged; remove {file.parent.parent} to begin anew")
    return document
