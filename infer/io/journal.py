"""The predictions of an unfinished run on disk, so that a stopped run can be resumed and gives the same bytes.

A folder for each shard: `job.json` (the request), `answers.f32` (float32 `[rows, C]` in input order, appended),
`errors.jsonl` (unreadable images), `done`. `outputs` writes the final files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from config.errors import CheckpointError, ConfigError
from config.places import atomic_write

ANSWERS = "answers.f32"
_JOB, _ERRORS, _DONE = "job.json", "errors.jsonl", "done"


class Journal:
    """A shard's predictions, locked by one process at a time; a context manager.

    `job` is the request: a journal of another one is refused with the keys that differ. `unit` rows are predicted
    together: what a killed run left is cut to a multiple of it. `rows` counts the remaining rows, `done` says whether
    the shard is complete. `ConfigError` for a journal with rows without `resume`, or while another process writes here.
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
        self._answers = (folder / ANSWERS).open("ab")
        self._errors = (folder / _ERRORS).open("a", encoding="utf-8")

    def append(self, probabilities: NDArray[np.float32], errors: Mapping[int, str]) -> None:
        """Add the next rows, float32 `[n, C]`; `errors` by the row's number in the input."""
        if errors:
            self._errors.writelines(map(_error_line, errors.items()))
            self._errors.flush()
        self._answers.write(np.ascontiguousarray(probabilities, np.float32).tobytes())
        self._answers.flush()
        self.rows += len(probabilities)

    def finish(self) -> None:
        """Mark the shard as complete."""
        atomic_write(self.folder / _DONE, b"")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._errors.close()
        self._lock.release()

    def _check(self, job: Mapping[str, Any], resume: bool) -> None:
        file, answers = self.folder / _JOB, self.folder / ANSWERS
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
        """Drop what follows the last complete unit, unless the shard is complete; return how many rows remain."""
        answers, errors = self.folder / ANSWERS, self.folder / _ERRORS
        if self.done:
            return answers.stat().st_size // (4 * self._classes)
        size = answers.stat().st_size if answers.exists() else 0
        rows = size // (4 * self._classes) // unit * unit
        if size:
            with answers.open("r+b") as file:
                file.truncate(rows * 4 * self._classes)
        if errors.exists():
            end = _read(self.folder / _JOB)["first_row"] + rows
            remaining = {row: text for row, text in read_errors(self.folder).items() if row < end}
            atomic_write(errors, "".join(map(_error_line, remaining.items())))
        return rows


def _error_line(error: tuple[int, str]) -> str:
    return json.dumps({"row": error[0], "error": error[1]}) + "\n"


def is_done(folder: Path) -> bool:
    """Whether the shard in `folder` is complete."""
    return (folder / _DONE).exists()


def read_answers(folder: Path, classes: int) -> NDArray[np.float32]:
    """float32 `[rows, C]` of a shard, memory-mapped; changes of the array are not written to the file."""
    file = folder / ANSWERS
    if not file.stat().st_size:
        return np.zeros((0, classes), np.float32)
    return np.memmap(file, np.float32, "c").reshape(-1, classes)


def read_errors(folder: Path) -> dict[int, str]:
    """Why an image could not be read, by its row in the input; an incomplete last line of a killed run is dropped."""
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
