"""Training from Python: `train` makes or resumes a run, `Run` evaluates, exports and uses it.

The public names are those of `training`. Settings, files and lines are those of the command line.
"""

from __future__ import annotations

import html
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

import backends
from config import load
from config.errors import BackendUnavailable, CheckpointError, DataError, Interrupted
from config.schema import Settings
from convert import export
from data.names import of_path
from ensemble.options import given
from infer.evaluation import report as evaluation
from infer.evaluation import scoring
from infer.io import collect, inputs
from infer.member import ensemble_of
from infer.model_cache import Keep
from infer.runner import Runner
from models.share import share
from training import report
from training.loop import checkpoint
from training.run import outcome, results, run_dir, train_run

_WHERE = "train()"  # the place of settings, in messages
_ROWS_SHOWN = 20


def train(
    model: str | None = None,
    data: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    epochs: int | None = None,
    image_size: int | None = None,
    batch_size: int | Literal["auto"] | None = None,
    lr: float | None = None,
    folds: int | Mapping[str, Any] | None = None,
    config: str | os.PathLike[str] | None = None,
    engine: str | None = None,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> Run:
    """Train a model, or resume a run, and return the finished run. What is not given is as on the command line.

    `data` is `data.root`; `epochs`, `image_size`, `batch_size` and `lr` are `train.epochs`, `data.image_size`,
    `train.batch_size` and `optim.lr`; `folds` trains so many stratified folds. All other settings go by their names, in
    `settings` or as keywords: `seed=1`, `optim={"name": "sgd"}`, `**{"augment.level": "strong"}`; `data` and `folds`
    may be such mappings, too. They stand over the recipe or YAML file `config`. `engine` is "torch" or "mlx"; None
    takes the one that is installed, of both MLX on a Mac and else torch.

    As on the command line the newest run of the same settings is resumed, and is returned at once where it is finished;
    `resume="never"` starts anew, and `train(resume=run.folder, resume_anyway=True, epochs=20)`
    trains a finished run on.

    Raises `TandemError`s such as `ConfigError` and `DataError`, never `SystemExit`. Ctrl-C, or the interrupt of a
    notebook, stops after the current step, saves, and raises `KeyboardInterrupt` with the call that goes on; a second
    one raises it at once. In a thread other than the main one signals are left to the program.
    """
    daily = {
        "model": model,
        "data" if isinstance(data, Mapping) else "data.root": data,
        "train.epochs": epochs,
        "data.image_size": image_size,
        "train.batch_size": batch_size,
        "optim.lr": lr,
    }
    split = {"strategy": "stratified", "n_splits": folds} if isinstance(folds, int) else folds
    named = {name: value for name, value in {**daily, "folds": split}.items() if value is not None}
    wanted = load.of_values([*named.items(), *(settings or {}).items(), *more.items()], config, _WHERE)
    if engine is not None and engine not in backends.ENGINES:
        raise BackendUnavailable(f"engine {engine!r} is not known; there are torch and mlx")
    with _stop_on_interrupt() as stop_requested:
        try:
            return Run.open(train_run.run_all(engine or backends.default(), wanted, stop_requested))
        except Interrupted as stopped:
            text = f"{outcome.stopped(stopped.folder)}. Go on with: train(resume={str(stopped.folder)!r})"
            raise KeyboardInterrupt(text) from None


@dataclass(frozen=True)
class Run:
    """A finished run in its folder. Nothing stays open: each call reads what it needs."""

    folder: Path

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """The run in `folder`; `CheckpointError` where there is none, or it is not finished."""
        path = Path(folder).expanduser()
        if not (path / run_dir.CONFIG).is_file():
            raise CheckpointError(f"{path}: no {run_dir.CONFIG}, so this is no run; give the folder of a run")
        results.fold_results(path)
        return cls(path)

    @property
    def settings(self) -> Settings:
        """All settings, with those filled in that depend on the model and the data set."""
        return load.read(self.folder / run_dir.CONFIG)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The classes, one for each column of the probabilities."""
        return results.card(self.folder).class_names

    @property
    def results(self) -> dict[str, Any]:
        """The out-of-fold scores: `folds`, a row each, and `mean` and `std` of accuracy, macro_f1 and log_loss."""
        return results.fold_results(self.folder)

    @property
    def folds(self) -> tuple[int, ...]:
        """The numbers of the trained folds."""
        return tuple(row["fold"] for row in self.results["folds"])

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """The best checkpoint of each fold."""
        return tuple(self.folder / f"fold_{number}" / checkpoint.BEST for number in self.folds)

    def history(self, fold: int = 0) -> list[dict[str, Any]]:
        """A row an epoch of one fold: learning rate, losses, scores, speed, and what the machine did."""
        return results.epochs(self.folder / f"fold_{fold}")

    def load(self, views: Sequence[str] = ("original",), keep: Keep = "auto", **options: Any) -> Runner:
        """All folds opened as one ensemble of equal weights, for many predictions; close it, or use it in a `with`.

        `views`, `keep` and `options` (`device`, `precision`, ...) are those of `infer.load`.
        """
        return Runner(ensemble_of([str(path) for path in self.checkpoints], views), given(options), keep)

    def predict(
        self,
        images: inputs.Image | Iterable[inputs.Image],
        views: Sequence[str] = ("original",),
        on_bad_image: Literal["error", "skip"] = "error",
        **options: Any,
    ) -> Predictions:
        """Predict images by the mean of all folds: one or many paths, encoded bytes, PIL images or uint8 `[H, W, 3]`
        RGB arrays, an array `[N, H, W, 3]`, or a folder, a table, a `.txt` list, a zip or tar archive of images.

        `skip` leaves out images that cannot be read and names them in `Predictions.skipped`; else they are a
        `DataError`. Anything that is no image is a `TypeError`.
        """
        wanted = _inputs(images)
        with self.load(views, **options) as runner:
            blank = np.zeros((0, len(runner.class_names)), np.float32)
            rows = runner.grid(len(wanted))
            chunks = list(runner.stream(wanted, rows, skip_bad=on_bad_image == "skip")) if len(wanted) else []
        skipped = {wanted.ids[row]: reason for chunk in chunks for row, reason in chunk.errors.items()}
        readable = [row for chunk in chunks for row in chunk.rows.tolist() if row not in chunk.errors]
        probabilities = np.concatenate([blank, *(chunk.probabilities for chunk in chunks)])
        return Predictions([wanted.ids[row] for row in readable], runner.class_names, probabilities[readable], skipped)

    def evaluate(
        self,
        data: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        split: scoring.Split | None = None,
        views: Sequence[str] = ("original",),
        on_bad_image: scoring.OnBad = "skip",
        out: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> scoring.Evaluation:
        """Score the mean of all folds on the labelled images of a data set; see `infer.evaluate`.

        `data` is as for `train`, or a mapping of settings of the data, such as `{"root": "DIR", "table": "test.csv"}`.
        None takes the run's own data set, which then must have labels for its test or validation split: for images that
        folds were trained on, `results` has the honest scores. `out` is a new folder for the report page and the files
        of the scores.
        """
        source = self.settings.data
        if data is not None:
            values = data if isinstance(data, Mapping) else {"root": data}
            source = load.of_values([("data", values)], None, "evaluate()").data
        labelled = scoring.labelled(source, split)
        if data is None and split is None and labelled.split == "all":
            raise DataError(
                f"{labelled.listing.root}: has no labelled test or validation split; `results` has the out-of-fold "
                "scores of its images, and evaluate(DATA) those of others"
            )
        with self.load(views, **options) as runner:
            return evaluation.evaluate(runner, labelled, None, on_bad_image, Path(out) if out is not None else None)

    def report(self) -> Path:
        """Write `report.html` of the run again, and return its path."""
        return report.write([self.folder], self.folder / "report.html")

    def export(
        self,
        to: str | Sequence[str],
        precision: str | Sequence[str] = "fp32",
        out: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        verify: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> list[Path]:
        """Write the best checkpoint of each fold as "onnx" or "coreml"; the paths of what was written, in `out` or
        beside the checkpoints. See `convert.convert`."""
        return export.artefacts(
            self.folder, to, precision, {**options, "out": out, "overwrite": overwrite, "verify": verify}
        )

    def push(self, repo: str = "", out: str | os.PathLike[str] | None = None, **options: Any) -> None:
        """Upload the best fold to the Hugging Face hub as `repo`, or write the new folder `out`: what timm loads.

        `options` are those of `models.share.share`: `fold`, `evaluation`, `dataset`, `license`, `private`.
        """
        print(*share(self.folder, repo, Path(out) if out is not None else None, **options), sep="\n")

    def __fspath__(self) -> str:
        """A run stands for its folder wherever a path is taken."""
        return os.fspath(self.folder)

    def __repr__(self) -> str:
        mean = self.results["mean"]
        scores = f"accuracy {mean['accuracy']:.4f}, macro-F1 {mean['macro_f1']:.4f}"
        return f"Run({str(self.folder)!r}: {self.settings.model}, folds {len(self.folds)}, {scores})"


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a run predicts for N images: float32 `[N, C]` probabilities, whose columns `class_names` names.

    `ids` are names below a folder or in an archive, paths, or positions in a list of other images. `skipped` says of
    images that could not be read why.
    """

    ids: list[str]
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """The most probable class of each image."""
        return [self.class_names[column] for column in self.probabilities.argmax(axis=1)]

    def rows(self) -> list[dict[str, Any]]:
        """A row an image: `id`, `label`, `probability`; `pandas.DataFrame(rows)` makes a table of them."""
        best = self.probabilities.max(axis=1).tolist()
        names = ("id", "label", "probability")
        return [dict(zip(names, row, strict=True)) for row in zip(self.ids, self.labels, best, strict=True)]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        shown = [f"{row['id']}: {row['label']} {row['probability']:.4f}" for row in self.rows()[:_ROWS_SHOWN]]
        return "\n".join([*shown, *self._further()])

    def _repr_html_(self) -> str:
        cells = [
            f"<tr><td>{html.escape(row['id'])}</td><td>{html.escape(row['label'])}</td><td>{row['probability']:.4f}</td></tr>"
            for row in self.rows()[:_ROWS_SHOWN]
        ]
        head = "<tr><th>id</th><th>label</th><th>probability</th></tr>"
        return f"<table>{head}{''.join(cells)}</table>{''.join(self._further())}"

    def _further(self) -> list[str]:
        return [f"... {len(self) - _ROWS_SHOWN} more"] if len(self) > _ROWS_SHOWN else []


def _inputs(images: inputs.Image | Iterable[inputs.Image]) -> inputs.Inputs:
    """Images with names: a path may be a folder, a table or an archive."""
    if isinstance(images, (str, os.PathLike)):
        return collect.collect([str(Path(images).expanduser())])
    if isinstance(images, (list, tuple)) and all(isinstance(image, (str, os.PathLike)) for image in images):
        paths = [Path(cast("str", image)).expanduser() for image in images]
        return inputs.of_paths(paths, [of_path(str(path)) for path in paths])
    return inputs.of_images(images)


@contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed meanwhile; a second one raises `KeyboardInterrupt`. Then the handler is as before."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = threading.Event()

    def note(*_: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # print() is not safe here: the signal may have come in the middle of another one.
        os.write(2, b"\nstopping after this step; interrupt again to stop at once\n")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
