import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import rankdata
from sklearn.metrics import accuracy_score, f1_score, log_loss

from config.errors import ConfigError
from ensemble import scores
from ensemble.calibration import scaling
from ensemble.oof import oof_table
from ensemble.weighting import average, greedy, weights
from ensemble.weighting.weights import WeightingRequest

# Weights (how often each run was taken) and regret of AutoGluon 1.6.3's EnsembleSelection with
# tie_breaker="second_metric", run on `problem(rows, classes, seed, sharps)` in an environment of its own.
AUTOGLUON = [
    (0, 300, 4, (2.0, 1.5, 1.0, 0.0), "log_loss", 10, [9, 1, 0, 0], 0.530384),
    (0, 300, 4, (2.0, 1.5, 1.0, 0.0), "log_loss", 40, [37, 2, 0, 0], 0.529065),
    (0, 300, 4, (2.0, 1.5, 1.0, 0.0), "macro_f1", 10, [3, 2, 2, 1], 0.039675),
    (0, 300, 4, (2.0, 1.5, 1.0, 0.0), "macro_f1", 40, [8, 6, 5, 2], 0.036066),
    (0, 300, 4, (2.0, 1.5, 1.0, 0.0), "accuracy", 40, [15, 10, 9, 4], 0.033333),
    (1, 500, 7, (1.8, 1.7, 1.6, 1.5, 1.2), "log_loss", 40, [12, 14, 5, 1, 0], 0.951666),
    (1, 500, 7, (1.8, 1.7, 1.6, 1.5, 1.2), "macro_f1", 10, [1, 1, 1, 1, 1], 0.038552),
    (1, 500, 7, (1.8, 1.7, 1.6, 1.5, 1.2), "macro_f1", 40, [5, 4, 5, 4, 4], 0.034206),
    (1, 500, 7, (1.8, 1.7, 1.6, 1.5, 1.2), "accuracy", 40, [3, 2, 3, 2, 2], 0.036),
    (2, 150, 3, (1.0, 1.0, 0.9), "log_loss", 40, [7, 4, 0], 0.694104),
    (2, 150, 3, (1.0, 1.0, 0.9), "macro_f1", 40, [7, 8, 5], 0.161769),
    (2, 150, 3, (1.0, 1.0, 0.9), "accuracy", 10, [2, 2, 1], 0.16),
]


def problem(rows, classes, seed, sharps):
    """Targets, and the answers of some runs that know them more or less sharply."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, rows)
    truth = np.eye(classes)[targets]
    return targets, [sharp * truth + rng.normal(size=(rows, classes)) for sharp in sharps]


def table(targets, answers, folds=5):
    """A table as `oof.align` makes it."""
    rows = np.arange(len(targets))
    gathered = [
        oof_table.Gathered([a.astype(np.float32)], np.zeros((1, len(rows)), np.int64), rows[None, :]) for a in answers
    ]
    present = [np.ones(len(rows), bool) for _ in answers]
    return oof_table.Table(rows.astype(str), targets, gathered, present, rows % folds)


def regret(metric, targets, mixed):
    if metric == "log_loss":
        return log_loss(targets, mixed)
    predicted = mixed.argmax(axis=1)
    if metric == "accuracy":
        return 1 - accuracy_score(targets, predicted)
    return 1 - f1_score(targets, predicted, average="macro")


@pytest.mark.parametrize(("seed", "rows", "classes", "sharps", "metric", "rounds", "counts", "reached"), AUTOGLUON)
def test_greedy_selection_takes_what_autogluon_takes(seed, rows, classes, sharps, metric, rounds, counts, reached):
    targets, answers = problem(rows, classes, seed, sharps)
    wish = WeightingRequest("greedy", metric=metric, rounds=rounds)
    found = weights.find(table(targets, answers), (1.0,) * len(answers), wish)
    assert np.allclose(found, np.array(counts) / sum(counts), atol=1e-12)
    mixed = np.tensordot(found, [softmax(a, axis=1) for a in answers], axes=1)
    assert regret(metric, targets, mixed) == pytest.approx(reached, abs=1e-6)


@pytest.mark.parametrize("combine", ["probabilities", "logits", "ranks"])
def test_the_front_predicts_what_the_whole_mixture_predicts(combine):
    rng = np.random.default_rng(0)
    block = average.summands(scaling.normalised(2 * rng.normal(size=(4, 200, 30)).astype(np.float32)), combine)
    front = greedy.front([block[:, :150], block[:, 150:]])
    assert front.values.shape[1] < 0.6 * 200 * 30
    for weight in [*rng.dirichlet(np.ones(4), 20), np.array([1.0, 0, 0, 0])]:
        assert np.array_equal(front.predicted(weight), np.tensordot(weight, block, axes=1).argmax(axis=1))


def test_the_mean_of_logits_has_the_weights_that_scikit_learns_log_loss_finds_on_a_grid():
    targets, answers = problem(400, 4, 3, (2.0, 1.2))
    grid = np.linspace(0, 1, 201)
    losses = [log_loss(targets, softmax(w * answers[0] + (1 - w) * answers[1], axis=1)) for w in grid]
    found = weights.find(table(targets, answers), (1.0, 1.0), WeightingRequest("convex", "logits"))
    assert found[0] == pytest.approx(grid[np.argmin(losses)], abs=0.006)


def test_ranks_are_scipys_and_their_mean_orders_the_classes():
    targets, answers = problem(50, 6, 4, (1.0, 1.0, 1.0))
    found = average.mix(table(targets, answers), (1.0,) * 3, np.array([0.5, 0.25, 0.25]), "ranks")
    borda = np.tensordot([0.5, 0.25, 0.25], [rankdata(a, axis=1) for a in answers], axes=1)
    assert np.array_equal(found.argmax(axis=1), borda.argmax(axis=1))
    assert np.allclose(np.exp(found), softmax(borda, axis=1), atol=1e-6)


def test_bagged_weights_repeat_and_soft_ones_lie_between():
    targets, answers = problem(300, 4, 5, (2.0, 1.8, 0.0))
    given = table(targets, answers), (1.0,) * 3
    for method in ("convex", "greedy"):
        hard = weights.find(*given, WeightingRequest(method))
        bagged = [weights.find(*given, WeightingRequest(method, bags=4, seed=seed)) for seed in (0, 0, 1)]
        assert np.array_equal(bagged[0], bagged[1]) and not np.array_equal(bagged[0], bagged[2])
        assert bagged[0].sum() == pytest.approx(1)
        assert np.allclose(weights.find(*given, WeightingRequest(method, soften=0.25)), 0.75 * hard + 0.25 / 3)
    # A bag of greedy selection sees two of the three runs, so that the good one cannot have it all.
    assert bagged[0][1] > 0


def test_runs_without_a_common_image_are_refused_where_they_must_be_compared():
    targets, answers = problem(60, 3, 6, (2.0, 1.0))
    one = table(targets, answers)
    half = np.arange(60) < 30
    apart = oof_table.Table(one.ids, targets, one.logits, [half, ~half], one.fold)
    with pytest.raises(ConfigError, match="no out-of-fold image in common"):
        weights.find(apart, (1.0, 1.0), WeightingRequest("greedy"))
    assert weights.find(apart, (1.0, 1.0), WeightingRequest("convex")).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        (WeightingRequest("fixed", given=(1.0,)), "1 weights for 2 runs"),
        (WeightingRequest("fixed", given=(1.0, -1.0)), "negative"),
        (WeightingRequest("convex", "ranks"), "no convex optimum"),
        (WeightingRequest("greedy", "logits"), "probabilities only"),
    ],
)
def test_a_wish_that_cannot_be_fulfilled_is_one_line(wish, text):
    with pytest.raises(ConfigError, match=text) as caught:
        weights.check(wish, 2)
    assert "\n" not in str(caught.value)


def test_macro_f1_is_scikit_learns_with_and_without_weights():
    rng = np.random.default_rng(0)
    targets, predicted = rng.integers(0, 6, 200), rng.integers(0, 7, 200)
    counts = rng.integers(0, 4, 200).astype(float)
    known = {"labels": range(8), "average": "macro", "zero_division": 0}
    assert scores.macro_f1(predicted, targets, 8) == pytest.approx(f1_score(targets, predicted, **known))
    weighed = f1_score(targets, predicted, sample_weight=counts, **known)
    assert scores.macro_f1(predicted, targets, 8, counts) == pytest.approx(weighed)


def test_the_interval_is_scipys_bootstrap():
    from scipy.stats import bootstrap

    targets, (answer,) = problem(400, 4, 7, (1.5,))
    judged = scores.judge(scaling.normalised(answer.astype(np.float32)), targets)
    rng = np.random.default_rng(0)
    for metric, values in (("log_loss", -judged.true), ("accuracy", judged.predicted == targets)):
        reference = bootstrap((values,), np.mean, n_resamples=1000, method="percentile", rng=rng).confidence_interval
        found, width = scores.interval(metric, judged, targets, 4), reference.high - reference.low
        assert found.value == pytest.approx(values.mean())
        assert abs(found.low - reference.low) < 0.1 * width > abs(found.high - reference.high)
