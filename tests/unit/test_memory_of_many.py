"""What is kept of many images and classes never holds a row of all classes for each image: a run's start, an epoch's
order, scores, and what the end of a run reads of its out-of-fold answers."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

from benchmarks import memory
from ensemble.calibration import scaling
from training.loop import metrics
from training.report import figures
from training.run import results

IMAGES, CLASSES, VALIDATION = 8000, 1000, 1000


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
    memory.start(100, 5, 10, tmp_path)  # what is imported and read once
    dense = 4 * IMAGES * CLASSES
    taken = peak(lambda: memory.start(IMAGES, CLASSES, VALIDATION, tmp_path / "runs"))
    assert taken < dense / 2, f"{taken / 2**20:.0f} MiB, dense targets would be {dense / 2**20:.0f}"


def test_scores_and_figures_are_made_some_rows_at_a_time(tmp_path: Path) -> None:
    logits, targets = memory.answers(IMAGES, CLASSES)
    dense = 2 * logits.nbytes  # probabilities in float64
    for work in (metrics.scores, figures.reliability):
        work(logits[:10], targets[:10])
        assert peak(lambda work=work: work(logits, targets)) < dense / 2
    memory.evaluated(IMAGES, CLASSES, tmp_path)
    results.oof(tmp_path)
    assert peak(lambda: metrics.predictions(results.oof(tmp_path)[1])) < logits.nbytes / 2


@pytest.mark.parametrize("classes", [3, 700])
def test_scores_are_scikit_learns_over_all_rows_at_once(classes: int) -> None:
    logits, targets = memory.answers(1500, classes)  # two blocks of rows at 700 classes
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
