"""A teacher's answers: made from finished runs, kept in an `.npz`, and read back with who may learn from them.

Row by row the file says which fold's members answered, and beside the rows it holds the split of the runs: members of
fold k never saw the images that validate fold k, so that a student of fold k may learn from them and from no others.
That holds for images without labels too, since pseudo labels carry what their teacher saw. How a run learns from the
answers stands in `training.teacher`.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config import load
from config.errors import ConfigError, DataError
from data import csvfile, sources
from data.audit import actions
from infer import oof
from infer.calibration import log_softmax
from infer.ensemble import Ensemble, refuse_existing
from infer.inputs import Inputs, of_paths
from infer.member import Member, check_classes
from infer.runner import OnBad, Runner

_WRITE = "write it with `python -m infer teacher RUN --out FILE.npz`"


@dataclass(frozen=True, eq=False)
class Answers:
    """R answers: image `ids` str `[R]`, `log_probabilities` float32 `[R, C]` of `class_names`, and `fold` int64 `[R]`,
    the fold whose validation images the answering members never saw. `split` is the fold of each image that they knew
    of, -1 for one that all of them were trained on. `unreadable` are images that could not be read: they have no rows.
    """

    source: str
    ids: NDArray[np.str_]
    log_probabilities: NDArray[np.float32]
    class_names: tuple[str, ...]
    fold: NDArray[np.int64]
    split: Mapping[str, int]
    unreadable: frozenset[str] = frozenset()

    def rows(self, fold: int) -> dict[str, int]:
        """The row of each image that the members of a fold answered; `DataError` when they answered one twice."""
        places = np.flatnonzero(self.fold == fold).tolist()
        found = {str(self.ids[place]): place for place in places}
        if len(found) < len(places):
            raise DataError(f"{self.source}: answers an image twice for fold {fold}; {_WRITE}")
        return found


def answer(
    runs: Sequence[Path],
    images: Path | None,
    views: Sequence[str] = ("original",),
    id_column: str = "ID",
    batch_size: int = 64,
    workers: int = 0,
    mixture: Ensemble | None = None,
    on_bad_image: OnBad = "skip",
) -> Answers:
    """What each fold's members of `runs` say together of a folder's or CSV's images.

    They count alike, or as `mixture` has them: an ensemble of the runs' best checkpoints, whose views and temperatures
    are taken too. Without `images` these are the runs' own training images, less those that validate the fold. An image
    that cannot be read has no answer, and a warning counts them (`skip`); `partial` takes what remains of truncated
    files, `error` stops. Raises `ConfigError` when the runs are not of one split or know different classes, `DataError`
    where no image can be read.
    """
    finished = [oof.read(run) for run in runs]
    check_classes([(str(run.path), run.class_names) for run in finished])
    split = _split(runs)
    table = _own(runs[0]) if images is None else sources.load_test(images, id_column)
    parts, bad = [], dict[str, str]()
    whole = mixture or Ensemble(members=tuple(m for _, some in _by_fold(finished) for m in some), views=tuple(views))
    for fold, members in _by_fold(finished):
        found = members if mixture is None else _counted(mixture, members, fold)
        asked = [i for i, name in enumerate(table.ids) if images is not None or split.get(name) != fold]
        inputs = of_paths([table.paths[i] for i in asked], [table.ids[i] for i in asked])
        with Runner(whole.model_copy(update={"members": found})) as runner:
            said, errors = _predicted(runner, inputs, batch_size, workers, on_bad_image)
        bad |= {inputs.ids[row]: text for row, text in errors.items()}
        good = [row for row in range(len(inputs)) if row not in errors]
        parts.append((np.array(inputs.ids)[good], said[good], np.full(len(good), fold, dtype=np.int64)))
    ids, said, fold_of = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not len(ids):
        raise DataError(f"none of the {len(bad)} images can be read; the first: {next(iter(bad.values()))}")
    if bad:
        warnings.warn(
            f"{len(bad)} images cannot be read and get no answer; the first: {next(iter(bad.values()))}", stacklevel=2
        )
    return Answers("", ids, _logarithm(said), finished[0].class_names, fold_of, split, frozenset(bad))


def _predicted(
    runner: Runner, inputs: Inputs, batch_size: int, workers: int, on_bad_image: OnBad
) -> tuple[NDArray[np.float32], dict[int, str]]:
    """Probabilities float32 `[N, C]`, and why an image could not be read, by its row."""
    errors: dict[int, str] = {}
    said = np.zeros((len(inputs), len(runner.class_names)), dtype=np.float32)
    truncated: dict[int, str] | None = {} if on_bad_image == "partial" else None
    grid = runner.grid(len(inputs), batch_size)
    for part in runner.stream(inputs, grid, workers, on_bad_image != "error", truncated):
        said[part.rows] = part.probabilities
        errors.update(part.errors)
    if truncated:
        first = truncated[min(truncated)]
        warnings.warn(
            f"{len(truncated)} truncated images are answered as far as they go; the first: {first}", stacklevel=3
        )
    return said, errors


def write(path: Path, answers: Answers) -> None:
    """Write the `.npz`; `ConfigError` when it exists already."""
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        np.savez(
            file,
            ids=answers.ids,
            probabilities=np.exp(answers.log_probabilities).astype(np.float32),
            class_names=np.array(answers.class_names),
            fold=answers.fold,
            split_ids=np.array(list(answers.split)),
            split_fold=np.array(list(answers.split.values()), dtype=np.int64),
            unreadable=np.array(sorted(answers.unreadable), dtype=np.str_),
        )


def read(path: Path) -> Answers:
    """Read what `write` wrote, or a file like it with `logits` in place of `probabilities`.

    `ConfigError` for a file that does not say which folds its answers are for, `DataError` for a damaged one.
    """
    held = _arrays(path)
    said = held.get("logits", held.get("probabilities"))
    if said is None or "ids" not in held or "class_names" not in held:
        raise DataError(f"{path}: has the arrays {', '.join(held)}, not ids, class_names and probabilities; {_WRITE}")
    lacking = [name for name in ("fold", "split_ids", "split_fold") if name not in held]
    if lacking:
        raise ConfigError(
            f"{path}: has no array {lacking[0]!r}, so it does not say which validation images its teacher saw; {_WRITE}"
        )
    _check(path, held, said)
    logarithms = log_softmax(said).astype(np.float32) if "logits" in held else _logarithm(said)
    names = tuple(str(name) for name in held["class_names"])
    split = dict(zip(held["split_ids"].astype(str).tolist(), held["split_fold"].astype(int).tolist(), strict=True))
    unreadable = frozenset(held["unreadable"].astype(str).tolist()) if "unreadable" in held else frozenset()
    fold = held["fold"].astype(np.int64)
    return Answers(str(path), held["ids"].astype(str), logarithms, names, fold, split, unreadable)


def _arrays(path: Path) -> dict[str, NDArray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as an .npz of a teacher's answers ({error}); {_WRITE}") from error


def _check(path: Path, held: Mapping[str, NDArray], said: NDArray) -> None:
    """`DataError` unless the arrays fit each other and the answers are finite, and probabilities sum to one."""
    fits = said.ndim == 2 and said.shape == (len(held["ids"]), len(held["class_names"]))
    if not fits or len(held["fold"]) != len(said) or len(held["split_ids"]) != len(held["split_fold"]):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in held.items())
        raise DataError(f"{path}: its arrays do not fit each other ({shapes}); {_WRITE}")
    if not np.isfinite(said).all() or ("logits" not in held and not _sum_to_one(said)):
        raise DataError(f"{path}: holds answers that are not finite or no probabilities; {_WRITE}")


def _sum_to_one(said: NDArray) -> bool:
    return bool((said >= 0).all() and np.allclose(said.sum(axis=1, dtype=np.float64), 1, atol=1e-3))


def _logarithm(probabilities: NDArray) -> NDArray[np.float32]:
    """float32 log probabilities, normalised; one of 0 is taken as the smallest that a float32 holds."""
    return log_softmax(np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))).astype(
        np.float32
    )


def _split(runs: Sequence[Path]) -> dict[str, int]:
    """The fold of each image, the same in all runs."""
    splits = [_folds(run / "folds.csv") for run in runs]
    for run, split in zip(runs, splits, strict=True):
        if split != splits[0]:
            raise ConfigError(
                f"{run}: its folds.csv differs from that of {runs[0]}, so that no fold is unseen by both; "
                "train one of them with --folds.file of the other"
            )
    return splits[0]


def _folds(path: Path) -> dict[str, int]:
    rows = csvfile.read(path, ("ID", "fold"))
    wrong = [row for row in rows if not row.cells["fold"].removeprefix("-").isdecimal()]
    if wrong:
        raise DataError(f"{path}: line {wrong[0].line} has fold {wrong[0].cells['fold']!r}, no number; mend that line")
    return {row.cells["ID"]: int(row.cells["fold"]) for row in rows}


def _own(run: Path) -> sources.Table:
    data = load.read(run / "config.yaml").data
    return actions.load(data).table


def _by_fold(runs: Sequence[oof.Run]) -> Iterator[tuple[int, tuple[Member, ...]]]:
    """Each fold's number and best checkpoints."""
    numbers = sorted({_number(fold) for run in runs for fold in run.folds})
    for number in numbers:
        folds = [fold for run in runs for fold in run.folds if _number(fold) == number]
        yield number, tuple(Member(path=fold / oof.BEST) for fold in folds)


def _counted(mixture: Ensemble, members: Sequence[Member], fold: int) -> tuple[Member, ...]:
    """The mixture's members among these, with their weights and temperatures; `ConfigError` where it has none."""
    places = {member.path.resolve() for member in members}
    found = tuple(m for m in mixture.members if m.weight > 0 and m.path.resolve() in places)
    if not found:
        raise ConfigError(f"the ensemble has no member of fold {fold}, so that no student of that fold could be taught")
    return found


def _number(fold: Path) -> int:
    return int(fold.name.removeprefix("fold_"))
