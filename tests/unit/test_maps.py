import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, f1_score, log_loss

from config.errors import ConfigError
from ensemble import decision
from ensemble.calibration import maps, scaling
from ensemble.weighting import stacking
from tests.unit.test_calibration import answers
from tests.unit.test_pool import problem, table


def logs(n=600, classes=5, seed=0):
    logits, targets = answers(n, classes, seed=seed)
    return log_softmax(logits.astype(float), axis=1), targets


def test_vector_scaling_is_scikit_learns_regression_for_two_classes():
    rows, targets = logs(classes=2, seed=1)
    skewed = rows * [1.0, 1.6] + [0.7, 0.0]
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(skewed, targets).predict_proba(skewed)
    found = np.exp(maps.vector(skewed, targets).apply(skewed))
    assert scaling.log_loss(np.log(found), targets) == pytest.approx(log_loss(targets, reference), rel=1e-5)
    assert np.abs(found - reference).max() < 0.01


def test_vector_scaling_finds_the_loss_that_a_search_over_scikit_learns_log_loss_finds():
    rows, targets = logs(n=200, classes=3)
    rows = rows * [1.0, 0.5, 1.5] + [0.0, 1.0, -1.0]

    def loss(parameters):
        return log_loss(targets, softmax(rows * parameters[:3] + parameters[3:], axis=1))

    reference = minimize(loss, [1, 1, 1, 0, 0, 0], method="BFGS").fun
    found = maps.vector(rows, targets)
    assert scaling.log_loss(found.apply(rows), targets) == pytest.approx(reference, abs=2e-6)
    assert loss([1, 1, 1, 0, 0, 0]) > reference + 0.05


def test_isotonic_is_scikit_learns_calibrated_classifier():
    rows, targets = logs()
    found = maps.isotonic(rows, targets)
    new = np.exp(logs(seed=2)[0])
    mine = np.exp(maps.Isotonic(found.x, found.y, found.starts, 1e-30).apply(np.log(new)))
    assert np.allclose(mine, reference_isotonic(np.exp(rows), targets, new), atol=1e-9)
    floored = np.exp(found.apply(np.log(new)))
    assert np.allclose(floored.sum(axis=1), 1) and floored.min() > 0.4 / 605


def reference_isotonic(rows, targets, new):
    """scikit-learn's CalibratedClassifierCV on a classifier that answers its inputs."""
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Echo(ClassifierMixin, BaseEstimator):
        def fit(self, rows, targets):
            self.classes_ = np.unique(targets)
            return self

        def predict_proba(self, rows):
            return rows

        def predict(self, rows):
            return rows.argmax(axis=1)

    echo = Echo().fit(rows, targets)
    return CalibratedClassifierCV(FrozenEstimator(echo), method="isotonic").fit(rows, targets).predict_proba(new)


def test_the_brier_score_is_scikit_learns():
    rows, targets = logs()
    wanted = brier_score_loss(targets, np.exp(rows), labels=range(5), scale_by_half=False)
    assert scaling.brier(rows, targets) == pytest.approx(wanted)


def test_clipping_helps_where_a_sure_answer_is_wrong():
    rows, targets = logs(n=200)
    rows = log_softmax(rows / 3, axis=1)  # the true temperature
    wrong = rows.copy()
    wrong[0] = log_softmax(40 * np.eye(5)[(targets[0] + 1) % 5])
    lowest = maps.clip(wrong, targets)
    clipped = maps.clip_logs(wrong, lowest)
    assert lowest > 0 and np.allclose(np.exp(clipped).sum(axis=1), 1)
    losses = [
        log_loss(targets, np.maximum(p, e) / np.maximum(p, e).sum(axis=1, keepdims=True))
        for p in [np.exp(wrong)]
        for e in (lowest, 1e-12, 0.1)
    ]
    assert scaling.log_loss(clipped, targets) == pytest.approx(losses[0]) and losses[0] == min(losses)


def skewed(rows=1200, classes=6, seed=0):
    """Log probabilities that are too fond of frequent classes, and targets."""
    rng = np.random.default_rng(seed)
    share = 0.5 ** np.arange(classes) / (0.5 ** np.arange(classes)).sum()
    targets = rng.choice(classes, rows, p=share)
    logits = 2 * np.eye(classes)[targets] + rng.normal(size=(rows, classes)) + np.log(share)
    return log_softmax(logits, axis=1), targets


@pytest.mark.parametrize("rule", ["prior", "thresholds"])
def test_a_rule_for_labels_raises_macro_f1_on_unseen_rows(rule):
    rows, targets = skewed()
    shifts = decision.fit(rule, rows[:600], targets[:600])
    f1 = [f1_score(targets[600:], decision.labels(rows[600:], which), average="macro") for which in (None, shifts)]
    assert f1[1] > f1[0] + 0.02 and abs(shifts.mean()) < 1e-12


def test_thresholds_are_what_a_grid_search_with_scikit_learn_finds_for_two_classes():
    rows, targets = skewed(rows=300, classes=2)
    shifts = decision.fit("thresholds", rows, targets)
    grid = np.linspace(-1.6, 1.6, 161)
    scored = [f1_score(targets, (rows + np.array([0, shift])).argmax(axis=1), average="macro") for shift in grid]
    mine = f1_score(targets, decision.labels(rows, shifts), average="macro")
    assert mine == pytest.approx(max(scored), abs=1e-9)


def test_a_stack_answers_as_scikit_learns_own_model():
    targets, given = problem(300, 4, 0, (2.0, 1.0))
    one = table(targets, given)
    stack = stacking.fit(one, (1.0, 1.0))
    features = stacking.features([log_softmax(a, axis=1) for a in given])
    scale = features.std()
    losses = {}
    for strength in (1e-3, 1e-2, 1e-1, 1.0):
        model = LogisticRegression(C=strength, max_iter=1000).fit(features / scale, targets)
        losses[strength] = np.abs(np.exp(stacking.mix(one, (1.0, 1.0), stack)) - model.predict_proba(features / scale))
    assert min(loss.max() for loss in losses.values()) < 1e-3


def test_a_stack_that_would_take_hours_is_refused(monkeypatch):
    targets, given = problem(50, 3, 0, (2.0, 1.0))
    monkeypatch.setattr(stacking, "_MOST", 100.0)
    with pytest.raises(ConfigError, match="3 classes x 2 runs x 50 images would take hours"):
        stacking.fit(table(targets, given), (1.0, 1.0))
    with pytest.raises(ConfigError, match="of one class"):
        stacking.fit(table(0 * targets, given), (1.0, 1.0))


def test_a_stack_knows_classes_that_it_never_saw():
    targets, given = problem(120, 5, 1, (3.0, 3.0))
    seen = np.flatnonzero(targets != 2)
    stack = stacking.fit(table(targets, given).take(seen), (1.0, 1.0))
    answered = stacking.mix(table(targets, given), (1.0, 1.0), stack).argmax(axis=1)
    assert (answered[targets == 2] == 2).mean() > 0.3
    two = table(targets % 2, [a[:, :2] for a in given])
    assert np.allclose(np.exp(stacking.mix(two, (1.0, 1.0), stacking.fit(two, (1.0, 1.0)))).sum(axis=1), 1)
