"""Scores of members on labelled images: predictions against the labels of a data set's split, and how sure they are.

`evaluate` computes them; the files are written by `files`, plots and page by `report`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from config.errors import DataError
from config.sections.data import Data
from config.text import counted
from data import progress_bar, sources
from data.names import of_path
from data.sources.listing import Listing
from ensemble import scores
from ensemble.aliases import Groups
from ensemble.calibration import scaling
from ensemble.calibration.scaling import Bins
from ensemble.scores import METRICS, Interval, Ints, Metric
from infer.evaluation import class_names
from infer.io.inputs import Inputs, of_paths
from infer.runner import OnBad, Runner

Split = Literal["train", "val", "test", "all"]
TOP_FIVE_FROM = 10  # classes; with fewer, most images would be right by chance
_SMALLEST = np.finfo(np.float64).eps  # scikit-learn's lowest probability for log loss


@dataclass(frozen=True)
class ClassScore:
    """One class: its labelled images, and precision, recall and F1; 0 where there is nothing to divide by."""

    name: str
    images: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class MemberScore:
    """Accuracy and macro-F1 of one member alone, with all views."""

    name: str
    accuracy: float
    macro_f1: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of an ensemble on the N readable, labelled images of a split, and the predictions that they are of.

    `targets` and `predicted` int64 `[N]` are positions in `class_names`; `probabilities` float32 `[N, C]`. Log loss is
    in nats. Macro-F1 is the mean over the classes that have images. `ece` is the expected calibration error over 15
    equal bins of confidence, `reliability` those bins, `temperature` what would calibrate these very images best: above
    1 where the probabilities are too sure. `top5` is None below 10 classes. `intervals` are 95% bootstrap intervals of
    accuracy, macro-F1 and log loss. `confusion` int64 `[K, K]` counts true classes (rows) and predicted ones; its K
    classes, `shown`, are those that occur in either, and so are those of `per_class`. `unreadable` has a line for each
    image that could not be read, by ID: it counts nowhere. `members` are those of an ensemble of several.
    """

    name: str
    views: tuple[str, ...]
    root: Path
    split: str
    origin: str
    class_names: tuple[str, ...]
    ids: list[str]
    paths: list[Path]
    targets: Ints
    predicted: Ints
    probabilities: NDArray[np.float32]
    accuracy: float
    macro_f1: float
    log_loss: float
    ece: float
    brier: float
    top5: float | None
    temperature: float
    intervals: Mapping[Metric, Interval]
    reliability: Bins
    shown: Ints
    confusion: Ints
    per_class: tuple[ClassScore, ...]
    members: tuple[MemberScore, ...]
    unreadable: Mapping[str, str]
    truncated: Sequence[str]
    notes: tuple[str, ...]
    seconds: float

    def __repr__(self) -> str:
        scores = f"accuracy {self.accuracy:.4f}, macro-F1 {self.macro_f1:.4f}, log loss {self.log_loss:.4f}"
        return f"Evaluation({str(self.root)!r}, split {self.split}, {counted(len(self.ids), 'image')}: {scores})"


def evaluate(
    runner: Runner,
    data: Data | Labelled | Path | str,
    split: Split | None = None,
    on_bad_image: OnBad = "skip",
    batch_size: int | None = None,
    workers: int = 0,
) -> Evaluation:
    """Predict the labelled images of a data set with an opened runner, and score the predictions.

    `data` is a folder, table, Parquet, shards or arrays, as `data.root` of a training, or what `labelled` gave; `split`
    None takes the test split where it has labels, else the validation split, else all images. An unreadable image is
    left out and counted (`skip`), `partial` takes what remains of truncated files, `error` stops. Raises `DataError`
    for a split without labels, for classes that the members do not know, and where no image can be read.
    """
    if isinstance(data, (str, Path)):
        data = Data(root=Path(data), on_bad_image="error" if on_bad_image == "error" else "skip")
    split_data = data if isinstance(data, Labelled) else labelled(data, split)
    inputs, targets = inputs_of(split_data, runner.class_names, runner.ensemble.aliases)
    start = time.perf_counter()
    predictions = _predicted(runner, inputs, on_bad_image, batch_size, workers)
    readable = np.flatnonzero([row not in predictions.errors for row in range(len(inputs))])
    if not len(readable):
        raise DataError(f"none of the {len(inputs)} images can be read; the first: {predictions.errors[0]}")
    return _scored(runner, split_data, predictions, readable, targets, time.perf_counter() - start)


class Labelled(NamedTuple):
    """The labelled images of a data set's `split`."""

    listing: Listing
    split: str


def labelled(data: Data, split: Split | None) -> Labelled:
    """The labelled images of a split, of `data.classes` alone where these are given."""
    listing, name = sources.load_labelled(data, split)
    if data.classes:
        some = [sample for sample in listing.samples if sample.label in data.classes]
        absent = sorted(set(data.classes) - {sample.label for sample in some})
        if absent:
            raise DataError(f"data.classes: {absent[0]!r} has no image in the split; {listing.root}")
        listing = replace(listing, samples=some)
    return Labelled(listing, name)


def inputs_of(data: Labelled, names: Sequence[str], aliases: Groups) -> tuple[Inputs, Ints]:
    """The images to predict, and their classes int64 `[N]` as positions in the members' `names`."""
    listing = data.listing
    labels = [str(sample.label) for sample in listing.samples]
    number = class_names.match(labels, names, aliases, str(listing.root))
    inputs = of_paths([sample.path for sample in listing.samples], [sample.id for sample in listing.samples])
    return inputs, np.array([number[label] for label in labels], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Predicted:
    """Probabilities float32 `[N, C]` and votes int64 `[N, M]`, with lines about unreadable and truncated images."""

    probabilities: NDArray[np.float32]
    votes: Ints
    errors: dict[int, str]
    truncated: dict[int, str]


@dataclass(frozen=True, eq=False)
class _Logs:
    """Log probabilities, computed for some rows at a time."""

    probabilities: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, ...]:
        """N and C."""
        return self.probabilities.shape

    def __len__(self) -> int:
        return len(self.probabilities)

    def __getitem__(self, rows: slice, /) -> NDArray[np.float64]:
        return np.log(np.maximum(self.probabilities[rows].astype(np.float64), _SMALLEST))


def _predicted(runner: Runner, inputs: Inputs, on_bad_image: OnBad, batch_size: int | None, workers: int) -> _Predicted:
    count, members = len(inputs), len(runner.ensemble.members)
    predicted = _Predicted(
        np.zeros((count, len(runner.class_names)), np.float32), np.zeros((count, members), np.int64), {}, {}
    )
    stream = runner.stream(
        inputs,
        runner.grid(count, batch_size),
        workers,
        on_bad_image != "error",
        predicted.truncated if on_bad_image == "partial" else None,
    )
    with progress_bar.bar("evaluate", count) as progress:
        for batch in stream:
            predicted.probabilities[batch.rows], predicted.votes[batch.rows] = batch.probabilities, batch.votes
            predicted.errors.update(batch.errors)
            progress(int(batch.rows[-1]) + 1)
    return predicted


def _scored(
    runner: Runner, data: Labelled, predictions: _Predicted, readable: Ints, targets: Ints, seconds: float
) -> Evaluation:
    listing = data.listing
    names, samples = runner.class_names, [listing.samples[row] for row in readable.tolist()]
    first_alias = _representatives(names, runner.ensemble.aliases)
    rows = (
        predictions.probabilities
        if len(readable) == len(predictions.probabilities)
        else predictions.probabilities[readable]
    )
    probabilities, targets = _sum_aliases(rows, first_alias), first_alias[targets[readable]]
    predicted = first_alias[runner.finish.labels(rows)]
    logs = _Logs(probabilities)
    judged = scores.judge(logs, targets)
    of_target = probabilities[np.arange(len(targets)), targets]
    in_top5 = (probabilities >= of_target[:, None]).sum(axis=1) <= 5  # a tie counts against it
    present, shown = np.unique(targets), np.union1d(targets, predicted)
    scored = precision_recall_fscore_support(targets, predicted, labels=shown, zero_division=0)[:3]
    images = np.bincount(targets, minlength=len(names))[shown]
    columns = [column.tolist() for column in (images, *scored)]
    bins = scaling.reliability(judged.confidence, judged.predicted == targets)
    chosen = judged._replace(predicted=predicted)
    intervals = {m: scores.interval(m, chosen, targets, len(names), among=present) for m in METRICS}
    return Evaluation(
        name=of_path(runner.name),
        views=runner.ensemble.views,
        root=listing.root,
        split=data.split,
        origin=of_path(listing.origin),
        class_names=names,
        ids=[sample.id for sample in samples],
        paths=[sample.path for sample in samples],
        targets=targets,
        predicted=predicted,
        probabilities=rows,
        accuracy=intervals["accuracy"].value,
        macro_f1=intervals["macro_f1"].value,
        log_loss=intervals["log_loss"].value,
        ece=scaling.gap(bins),
        brier=scaling.brier(logs, targets),
        top5=float(in_top5.mean()) if len(names) >= TOP_FIVE_FROM else None,
        temperature=scaling.temperature(logs, targets),
        intervals=intervals,
        reliability=bins,
        shown=shown,
        confusion=confusion_matrix(targets, predicted, labels=shown),
        per_class=tuple(ClassScore(names[number], *row) for number, *row in zip(shown, *columns, strict=True)),
        members=_alone(runner, first_alias[predictions.votes[readable]], targets, present),
        unreadable={listing.samples[row].id: text for row, text in sorted(predictions.errors.items())},
        truncated=[of_path(text) for _, text in sorted(predictions.truncated.items())],
        notes=listing.notes,
        seconds=seconds,
    )


def _representatives(names: Sequence[str], aliases: Groups) -> Ints:
    """int64 `[C]`: for each class the first of those that are its aliases, or itself."""
    first_alias = np.arange(len(names))
    for group in aliases:
        known = [names.index(name) for name in group if name in names]
        first_alias[known] = min(known, default=0)
    return first_alias


def _sum_aliases(probabilities: NDArray[np.float32], first_alias: Ints) -> NDArray[np.float32]:
    """Probabilities where those of aliases are added to that of their first class."""
    if (first_alias == np.arange(len(first_alias))).all():
        return probabilities
    summed = np.zeros_like(probabilities)
    np.add.at(summed.T, first_alias, probabilities.T)
    return summed


def _alone(runner: Runner, votes: Ints, targets: Ints, present: Ints) -> tuple[MemberScore, ...]:
    """The scores of each of several members; none for adaptive runs, where not every member predicts every image."""
    members = runner.ensemble.members
    if len(members) == 1 or runner.adaptive:
        return ()
    return tuple(
        MemberScore(
            of_path(str(member)),
            float((vote == targets).mean()),
            scores.macro_f1(vote, targets, len(runner.class_names), among=present),
        )
        for member, vote in zip(members, votes.T, strict=True)
    )
