import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from ensemble.calibration import scaling


def answers(n=600, classes=5, sharp=3.0, seed=0):
    """Logits whose true temperature is `sharp`: targets are drawn from softmax(logits / sharp)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)).astype(np.float32) * 2 * sharp
    probabilities = np.exp(log_softmax(logits / sharp, axis=1))
    targets = np.array([rng.choice(classes, p=row / row.sum()) for row in probabilities])
    return logits, targets


def test_log_softmax_is_scipys_and_survives_large_logits():
    logits = np.array([[1e4, -1e4, 0.0], [-5.0, 2.0, 2.0]], np.float32)
    assert np.allclose(scaling.log_softmax(logits), log_softmax(logits.astype(float), axis=1), rtol=1e-12)
    assert np.allclose(scaling.log_softmax(logits, 2.5), log_softmax(logits / 2.5, axis=1), rtol=1e-6)


def test_log_loss_is_scikit_learns():
    logits, targets = answers()
    rows = scaling.log_softmax(logits)
    assert scaling.log_loss(rows, targets) == pytest.approx(log_loss(targets, np.exp(rows)), rel=1e-9)


def test_temperature_is_recovered():
    logits, targets = answers(n=20000)
    assert scaling.temperature(logits, targets) == pytest.approx(3.0, rel=0.05)


def test_temperature_is_scikit_learns_slope_for_two_classes():
    logits, targets = answers(classes=2)
    margin = (logits[:, 1] - logits[:, 0]).astype(float)[:, None]
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(margin, targets)
    assert 1 / scaling.temperature(logits, targets) == pytest.approx(model.coef_[0, 0], rel=1e-4)


def test_temperature_of_perfect_answers_is_finite():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 1]]
    assert 0 < scaling.temperature(logits, np.array([0, 1, 2, 1])) < 0.1


def calibration_error(probabilities, targets):
    correct = probabilities.argmax(axis=1) == targets
    return scaling.gap(scaling.reliability(probabilities.max(axis=1).astype(np.float64), correct))


def test_expected_calibration_error_is_scikit_learns_curve_weighted():
    logits, targets = answers(n=2000)
    probabilities = np.exp(log_softmax(logits, axis=1))
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    accuracy, mean = calibration_curve(correct, confidence, n_bins=15)
    counts = np.histogram(confidence, np.linspace(0, 1, 16))[0]
    expected = np.abs(accuracy - mean) @ counts[counts > 0] / len(targets)
    assert calibration_error(probabilities, targets) == pytest.approx(expected, rel=1e-6)


def test_calibration_lowers_the_error_and_the_loss():
    logits, targets = answers(n=4000)
    before, after = (
        scaling.log_softmax(logits),
        scaling.log_softmax(logits, scaling.temperature(logits, targets)),
    )
    assert scaling.log_loss(after, targets) < scaling.log_loss(before, targets) - 0.1
    errors = [calibration_error(np.exp(rows), targets) for rows in (before, after)]
    assert errors[1] < 0.03 < 0.1 < errors[0]
