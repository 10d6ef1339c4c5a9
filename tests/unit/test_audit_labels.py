"""Planted label noise is found from out-of-fold probabilities, and classes that are one are told of."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from data.audit import labels


@pytest.fixture(scope="module")
def answered():
    """Digits of which 8% carry another label: probabilities, labels as given, labels as they are."""
    pixels, true = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    given = true.copy()
    wrong = rng.random(len(true)) < 0.08
    given[wrong] = (true[wrong] + rng.integers(1, 10, wrong.sum())) % 10
    model = KNeighborsClassifier(10, weights="distance")
    probabilities = cross_val_predict(model, pixels, given, cv=5, method="predict_proba")
    return probabilities, given.astype(np.int64), true.astype(np.int64)


def test_planted_errors_are_found_and_ranked_first(answered) -> None:
    probabilities, given, true = answered
    wrong = given != true
    found = labels.errors(probabilities, given)
    hits = wrong[found]
    assert hits.mean() > 0.8 and hits.sum() > 0.7 * wrong.sum()
    assert hits[: len(found) // 2].mean() > 0.95
    told = labels.find([str(i) for i in range(len(given))], probabilities, given, list("0123456789"))
    proposed = [finding for finding in told if finding.action == "relabel"]
    right = [finding.value == str(true[int(finding.id)]) for finding in proposed]
    assert len(proposed) > 0.5 * wrong.sum() and np.mean(right) > 0.9


def test_clean_labels_give_few_findings(answered) -> None:
    probabilities, given, true = answered
    clean = given == true
    assert len(labels.errors(probabilities[clean], given[clean])) < 0.01 * clean.sum()


def test_two_names_of_one_class_are_told(answered) -> None:
    probabilities, _, true = answered
    split = np.random.default_rng(1).random(len(true)) < 0.5
    both = np.concatenate([probabilities, probabilities[:, 3:4]], axis=1)
    threes = true == 3
    share = np.random.default_rng(2).random(len(true))
    both[threes, 3], both[threes, 10] = both[threes, 3] * share[threes], both[threes, 3] * (1 - share[threes])
    renamed = np.where(threes & split, 10, true)
    told = labels.confused(both, renamed, [*"0123456789", "three"])
    assert [finding.target for finding in told if finding.kind == "alias"] == ["3"]
    assert told[0].kind == "confused" and "3 taken for three" in told[0].detail
