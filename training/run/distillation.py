"""What a fold learns from: its labelled images, a teacher's predictions of them, and pseudo-labelled images.

A fold never learns from a teacher that saw its validation images. `ensemble.oof.teacher_file` reads the predictions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from config.errors import ConfigError, DataError
from config.schema import Settings
from config.sections.data import Teacher
from config.text import counted
from data import folds as split
from data import sources
from ensemble.oof import teacher_file
from ensemble.oof.teacher_file import TeacherPredictions
from training.policy.targets import JoinedTargets, TargetRows, Targets


class DistillationTargets(NamedTuple):
    """The N images that a fold is trained on: labels int64 `[N]`, `targets` of each, and `weights` float32 `[N]`
    in the mean loss. The label of a pseudo-labelled image is its likeliest class."""

    paths: list[Path]
    labels: NDArray[np.int64]
    targets: Targets
    weights: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class DistillationData:
    """A run's teacher: its predictions of the labelled images, and of the `images` without labels, if any."""

    settings: Teacher
    smoothing: float
    labelled: TeacherPredictions | None = None
    extra: TeacherPredictions | None = None
    images: sources.Table | None = None

    def paths(self) -> list[Path]:
        """The files of the images without labels."""
        return self.images.paths if self.images else []


def read(settings: Settings, table: sources.Table) -> DistillationData:
    """The teacher that the settings name, if any; its classes and the images besides are checked against the data."""
    teacher, smoothing = settings.teacher, settings.loss.label_smoothing
    labelled = _of_classes(teacher_file.read(teacher.file), table.class_names) if teacher.file else None
    if not teacher.extra_root or not teacher.extra_file:
        return DistillationData(teacher, smoothing, labelled)
    extra = _of_classes(teacher_file.read(teacher.extra_file), table.class_names)
    images = sources.load_test(teacher.extra_root, settings.data.id_column)
    images = images.take([i for i, name in enumerate(images.ids) if name not in extra.unreadable])
    both = {path.resolve() for path in images.paths} & {path.resolve() for path in table.paths}
    if both:
        raise DataError(
            f"{min(both)}: is a labelled image and in teacher.extra_root as well ({len(both)} such); "
            "give a folder of other images"
        )
    return DistillationData(teacher, smoothing, labelled, extra, images)


def check(teaching: DistillationData, table: sources.Table, fold_of: NDArray[np.int64], folds: Iterable[int]) -> None:
    """Check the teacher of each of the `folds` before training, and print how many images are pseudo-labelled in each.

    `ConfigError` where a fold has no teacher, one that saw an image which validates this fold, or too few predictions.
    """
    for fold in folds:
        for answers in filter(None, (teaching.labelled, teaching.extra)):
            _check_unseen(answers, [table.ids[i] for i in np.flatnonzero(split.validates(fold_of, fold))], fold)
        train = np.flatnonzero(~split.validates(fold_of, fold))
        more = len(training_targets(teaching, table, train, fold).paths) - len(train)
        if teaching.images:
            count, root = counted(len(teaching.images.ids), "image"), teaching.settings.extra_root
            print(f"fold {fold}: pseudo-labelled: {more} of {count} of {root}")


def _check_unseen(answers: TeacherPredictions, validation: list[str], fold: int) -> None:
    if not (answers.fold == fold).any():
        there = ", ".join(str(k) for k in np.unique(answers.fold))
        raise ConfigError(
            f"{answers.source}: has no answers for fold {fold}, only for {there}; set folds.train to those"
        )
    leaked = [name for name in validation if answers.split.get(name) != fold]
    if leaked:
        raise ConfigError(
            f"{answers.source}: its teacher of fold {fold} may have seen "
            f"{counted(len(leaked), 'validation image')} of fold {fold} "
            f"here ({leaked[0]}, ...); set folds.file to the folds.csv of the teacher's run"
        )


def training_targets(
    teaching: DistillationData, table: sources.Table, train: NDArray[np.int64], fold: int
) -> DistillationTargets:
    """What fold `fold` is trained on: the images at `train` of the table, then the pseudo-labelled ones."""
    labels, teacher = table.labels[train], teaching.settings
    ids = [table.ids[i] for i in train]
    answers = _find(teaching.labelled, ids, fold, labels) if teaching.labelled else None
    targets = TargetRows(
        labels, len(table.class_names), teaching.smoothing, answers, teacher.temperature, teacher.weight
    )
    labelled = DistillationTargets([table.paths[i] for i in train], labels, targets, np.ones(len(train), np.float32))
    pseudo = _pseudo_labelled(teaching, fold)
    if pseudo is None:
        return labelled
    return DistillationTargets(
        labelled.paths + pseudo.paths,
        np.concatenate([labels, pseudo.labels]),
        JoinedTargets(len(labels), (targets, pseudo.targets)),
        np.concatenate([labelled.weights, pseudo.weights]),
    )


def _pseudo_labelled(teaching: DistillationData, fold: int) -> DistillationTargets | None:
    """The images without labels that the fold's teacher is sure enough of."""
    teacher, extra, images = teaching.settings, teaching.extra, teaching.images
    if not extra or not images:
        return None
    answers = _find(extra, images.ids, fold)
    sure = np.flatnonzero(np.exp(answers.max(axis=1)) >= teacher.min_confidence)
    if not len(sure):
        raise ConfigError(
            f"teacher.min_confidence {teacher.min_confidence:g}: the teacher of fold {fold} is not as sure of any "
            f"image of {teacher.extra_root}; lower it"
        )
    labels = answers[sure].argmax(axis=1).astype(np.int64)
    soft = answers[sure] if teacher.extra_labels == "soft" else None
    targets = TargetRows(labels, answers.shape[1], teaching.smoothing, soft, teacher.temperature)
    weights = np.full(len(sure), teacher.extra_weight, np.float32)
    return DistillationTargets([images.paths[i] for i in sure], labels, targets, weights)


def _find(
    answers: TeacherPredictions, ids: list[str], fold: int, labels: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """The log probabilities `[N, C]` of the images `ids` from the members that never saw the fold's validation.

    One that the teacher could not read gets its label, where there are `labels`.
    """
    rows = answers.rows(fold)
    unreadable = frozenset[str]() if labels is None else answers.unreadable
    missing = [name for name in ids if name not in rows and name not in unreadable]
    if missing:
        raise ConfigError(
            f"{answers.source}: has no answer for {len(missing)} of {len(ids)} images in fold {fold} ({missing[0]}, "
            "...); write it anew for these images with `python -m infer teacher`"
        )
    log_probabilities = answers.log_probabilities[[rows.get(name, 0) for name in ids]]
    if labels is not None:
        missed = [i for i, name in enumerate(ids) if name in unreadable]
        log_probabilities[missed] = np.log(np.finfo(np.float32).tiny)
        log_probabilities[missed, labels[missed]] = 0
    return log_probabilities


def _of_classes(answers: TeacherPredictions, names: tuple[str, ...]) -> TeacherPredictions:
    """The predictions with their columns in the order of `names`."""
    if set(answers.class_names) != set(names) or len(answers.class_names) != len(names):
        odd = sorted(set(answers.class_names) ^ set(names))
        raise ConfigError(
            f"{answers.source}: knows {len(answers.class_names)} classes and the data set has {len(names)}; "
            f"{odd[0]!r} is not in both, take a teacher of the same classes"
        )
    order = [answers.class_names.index(name) for name in names]
    return replace(answers, log_probabilities=answers.log_probabilities[:, order], class_names=names)
