"""Scores: cases whose answer is known by hand, and the targets against torch's own label smoothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.loop import metrics
from training.policy.targets import smoothed


def test_scores_of_a_case_done_by_hand() -> None:
    logits = np.log(np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], np.float32))
    found = metrics.scores(logits, np.array([0, 1, 1]))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert found["log_loss"] == pytest.approx(-(np.log(0.8) + np.log(0.3) + np.log(0.7)) / 3, rel=1e-6)


def test_scores_of_infinite_logits_are_nan_not_an_error() -> None:
    assert np.isnan(metrics.scores(np.full((2, 3), np.nan, np.float32), np.array([0, 1]))["macro_f1"])


def test_smoothed_targets_give_torchs_label_smoothing() -> None:
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(6, 5)), dtype=torch.float64)
    labels = rng.integers(0, 5, 6)
    rows = torch.tensor(smoothed(labels, 5, 0.1), dtype=torch.float64)
    ours = -(rows * logits.log_softmax(1)).sum(1).mean()
    reference = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), label_smoothing=0.1)
    assert float(ours) == pytest.approx(float(reference), rel=1e-6)
