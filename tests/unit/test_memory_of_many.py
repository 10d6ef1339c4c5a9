"""What is kept of many images and classes never holds a row of all classes for each image: a run's start, an epoch's
order, scores, and what the end of a run reads of its out-of-fold answers."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.special import softmax
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

from backends.group import ALONE
from config import load
from config.schema import Settings
from data import folds
from data.decode.image import Shrink
from data.pixels import Pixels
from data.rng import philox
from data.sources.table import Table
from ensemble.calibration import scaling
from training.loop import evaluation, metrics, trainer
from training.loop.state import Callbacks
from training.policy import loss
from training.report import figures
from training.run import distillation, fold, prepare, results

IMAGES, CLASSES, VALIDATION = 8000, 1000, 1000
SIZE, BATCH = 32, 256


def settings(folder: Path) -> Settings:
    """A plain run with what takes memory for each image: mining, balanced draws, class weights."""
    words = ["--data.root", str(folder), "--out", str(folder), "--model", "convnext_atto", "--weights", "none"]
    words += ["--data.image_size", str(SIZE), "--train.batch_size", str(BATCH), "--data.workers", "1"]
    words += ["--mining.cap", "0.3", "--mining.start_epoch", "1", "--sampling.kind", "square_root"]
    words += ["--loss.class_weights", "balanced", "--loss.label_smoothing", "0.1", "--data.audit", "false"]
    return load.parse(words, prog="test")


def table(images: int, classes: int, folder: Path) -> Table:
    """As many images as ImageNet's folders name them; every class has about as many."""
    names = tuple(f"n{number:08}" for number in range(classes))
    labels = philox(0, "labels").permutation(np.arange(images) % classes)
    ids = [f"{names[label]}/{names[label]}_{number}.JPEG" for number, label in enumerate(labels.tolist())]
    return Table(ids, [folder / "train" / name for name in ids], labels, names, folder)


def start(images: int, classes: int, validation: int, folder: Path) -> None:
    """All that a run makes before its first batch: folds written and read back, targets, loaders, the first order."""
    folder.mkdir(exist_ok=True)
    labelled = table(images, classes, folder)
    request, spec, labelled = prepare.prepare(settings(folder), labelled)
    request = request.model_copy(
        update={"folds": request.folds.model_copy(update={"val_fraction": validation / images})}
    )
    prepare.split(request, labelled, _black, folder)
    shared = prepare.split(request, labelled, _black, folder)  # a run that is resumed
    teaching = distillation.read(request, labelled)
    distillation.check(teaching, labelled, shared.fold_of, [0])
    job = fold.Job("torch", request, spec, shared, teaching, folder, lambda: False)
    data = fold.load_data(job, 0)
    loss.spec(request.loss, labelled.labels[~folds.validates(shared.fold_of, 0)], classes)
    fit = trainer.Trainer(_NoSession(), data, request, job.card, folder, Callbacks())
    fit.mining.observe(np.arange(len(data.train_labels)), np.zeros(len(data.train_labels), np.float32))
    fit.mining.close_epoch()
    order = fit._order(1)
    for _, loaded in zip(range(3), data.train[0].epoch(order), strict=False):
        data.train_targets[loaded.index]


def evaluated(validation: int, classes: int, folder: Path) -> None:
    """Score answers as an epoch does and write them as those of a finished fold."""
    logits, targets = answers(validation, classes)
    kept = evaluation.answered(logits)
    metrics.scores(logits[kept], targets[kept])
    place = folder / "fold_0"
    place.mkdir(exist_ok=True)
    evaluation.write_oof(place, [f"{number:08}.JPEG" for number in range(validation)], logits, targets)
    (place / "result.yaml").write_text(yaml.safe_dump({"fold": 0}))


def answers(count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 `[count, classes]` of a network that is right in three of four, a batch at a time, and targets."""
    targets = np.arange(count) % classes
    logits = np.empty((count, classes), np.float32)
    for first in range(0, count, BATCH):
        rng = philox(0, "logits", first)
        part = logits[first : first + BATCH]
        part[:] = rng.standard_normal(part.shape, np.float32)
        right = np.flatnonzero(rng.random(len(part)) < 0.75)
        part[right, targets[first + right]] += 8
    return logits, targets


def _black(path: Path, shrink: Shrink) -> Pixels:
    return np.zeros((SIZE, SIZE, 3), np.uint8)


class _NoSession:
    """Stands for the engine, which no part asks for anything."""

    group = ALONE


def peak(work: Callable[[], object]) -> int:
    """Bytes that Python and NumPy held at once beyond what they held before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_a_run_starts_without_dense_targets(tmp_path: Path) -> None:
    start(100, 5, 10, tmp_path)  # what is imported and read once
    dense = 4 * IMAGES * CLASSES
    taken = peak(lambda: start(IMAGES, CLASSES, VALIDATION, tmp_path / "runs"))
    assert taken < dense / 2, f"{taken / 2**20:.0f} MiB, dense targets would be {dense / 2**20:.0f}"


def test_scores_and_figures_are_made_some_rows_at_a_time(tmp_path: Path) -> None:
    logits, targets = answers(IMAGES, CLASSES)
    dense = 2 * logits.nbytes  # probabilities in float64
    for work in (metrics.scores, figures.reliability):
        work(logits[:10], targets[:10])
        assert peak(lambda work=work: work(logits, targets)) < dense / 2
    evaluated(IMAGES, CLASSES, tmp_path)
    results.oof(tmp_path)
    assert peak(lambda: metrics.predictions(results.oof(tmp_path)[1])) < logits.nbytes / 2


@pytest.mark.parametrize("classes", [3, 700])
def test_scores_are_scikit_learns_over_all_rows_at_once(classes: int) -> None:
    logits, targets = answers(1500, classes)  # two blocks of rows at 700 classes
    assert len(list(scaling.blocks(*logits.shape))) == (1 if classes == 3 else 3)
    predicted, probabilities = logits.argmax(axis=1), softmax(logits.astype(np.float64), axis=1)
    assert metrics.scores(logits, targets) == {
        "macro_f1": f1_score(targets, predicted, average="macro", labels=np.arange(classes), zero_division=0),
        "accuracy": accuracy_score(targets, predicted),
        "log_loss": pytest.approx(log_loss(targets, probabilities, labels=np.arange(classes)), rel=1e-12),
    }
    np.testing.assert_array_equal(
        metrics.confusion(logits, targets), confusion_matrix(targets, predicted, labels=np.arange(classes))
    )
    sure = logits * np.float32(1000)  # probabilities of 0 and 1, which scikit-learn clips
    want = log_loss(targets, softmax(sure.astype(np.float64), axis=1), labels=np.arange(classes))
    assert metrics.scores(sure, targets)["log_loss"] == pytest.approx(want, rel=1e-12)
