"""Every loss against its public reference, on both engines, with its gradient, its class weights, and in training."""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from timm.loss import AsymmetricLossMultiLabel, AsymmetricLossSingleLabel, BinaryCrossEntropy, PolyCrossEntropy
from torch.nn import functional as F

from backends import losses
from backends.contract import Batch, LossSpec, OptimSpec, SessionConfig, StepHyperparams, Weights, is_buffer
from backends.mlx import losses as mlx_losses
from backends.mlx import session as mlx_session
from backends.torch import losses as torch_losses
from backends.torch import session as torch_session
from config.errors import ConfigError
from config.sections.train import LOSS_OPTIONS, Loss
from tests import tiny
from tests.numpy_engine import session as numpy_session
from tests.parity import harness
from tests.parity.test_training_parity import knobs, mix

CLASSES = 4
CLASS_WEIGHTS = (0.5, 3.0, 1.0, 0.25)
# The defaults, and options at the limits where the formulas change form.
CASES: list[tuple[str, dict[str, float]]] = [(name, dict(options)) for name, options in LOSS_OPTIONS.items()]
CASES += [
    ("focal", {"gamma": 0.0, "alpha": 0.25}),
    ("focal", {"gamma": 1.5, "alpha": 1.0}),
    ("bi_tempered", {"t1": 0.0, "t2": 1.1}),
    ("bi_tempered", {"t1": 0.3, "t2": 1.0}),
    ("bi_tempered", {"t1": 1.0, "t2": 1.2}),
    ("bi_tempered", {"t1": 0.9999, "t2": 1.0001}),
    ("poly1", {"epsilon": -1.0}),
    ("asymmetric", {"gamma_neg": 0.0, "gamma_pos": 0.0, "clip": 0.0}),
    ("asymmetric", {"gamma_neg": 1.5, "gamma_pos": 2.5, "clip": 0.2}),
]
# Powers whose slope is infinite at zero: timm's own gradient is NaN there.
STEEP: list[tuple[str, dict[str, float]]] = [
    ("focal", {"gamma": 0.5, "alpha": 1.0}),
    ("asymmetric", {"gamma_neg": 0.5, "gamma_pos": 0.1, "clip": 0.2}),
]
Array = np.ndarray


def rows(kind: str, count: int = 24, classes: int = CLASSES, spread: float = 2.0) -> tuple[Array, Array]:
    """Random float32 logits `[count, classes]` and target rows: hard, smoothed, or anything that sums to one."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(count, classes)) * spread).astype(np.float32)
    targets = np.eye(classes)[rng.integers(0, classes, count)]
    if kind == "smoothed":
        targets = 0.9 * targets + 0.1 / classes
    if kind == "soft":
        targets = rng.dirichlet(np.ones(classes), count)
    return logits, targets.astype(np.float32)


def by_torch(spec: LossSpec, logits: Array, targets: Array) -> tuple[Array, Array]:
    """Per-sample losses and the gradient of their sum."""
    x = torch.tensor(logits, requires_grad=True)
    each = torch_losses.make(spec)(x, torch.tensor(targets))
    each.sum().backward()
    assert each.dtype == torch.float32
    assert x.grad is not None
    return each.detach().numpy(), x.grad.numpy()


def by_mlx(spec: LossSpec, logits: Array, targets: Array) -> tuple[Array, Array]:
    """Per-sample losses and the gradient of their sum."""
    loss, t = mlx_losses.make(spec), mx.array(targets)
    each = loss(mx.array(logits), t)
    assert each.dtype == mx.float32
    return np.array(each), np.array(mx.grad(lambda x: loss(x, t).sum())(mx.array(logits)))


def reference(name: str, options: dict[str, float], logits: Array, targets: Array) -> tuple[Array, Array]:
    """The same from the public implementation (timm's run in float32), or from the paper's formulas."""
    if name == "bi_tempered":
        return paper_bi_tempered(logits, targets, **options)
    x, t = torch.tensor(logits, dtype=torch.float64, requires_grad=True), torch.tensor(targets, dtype=torch.float64)
    each = public(name, options, x, t)
    each.sum().backward()
    assert x.grad is not None
    return each.detach().numpy(), x.grad.numpy()


def public(name: str, options: dict[str, float], x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    if name == "cross_entropy":
        return F.cross_entropy(x, t, reduction="none")
    if name == "focal":  # timm's for hard targets is the focal loss where negatives do not count; soft ones mix these
        hard = AsymmetricLossSingleLabel(gamma_pos=options["gamma"], gamma_neg=0, eps=0.0, reduction="none")
        of_class = [hard(x, torch.full((len(x),), c)) for c in range(x.shape[1])]
        return options["alpha"] * (t * torch.stack(of_class, dim=1)).sum(1)
    if name == "poly1":
        return PolyCrossEntropy(options["epsilon"], reduction="none")(x, t)
    if name == "bce":
        return BinaryCrossEntropy(smoothing=0.0, reduction="none")(x, t).mean(1)
    return AsymmetricLossMultiLabel(**options, reduction="none")(x, t).sum(1)


def paper_bi_tempered(logits: Array, targets: Array, t1: float, t2: float) -> tuple[Array, Array]:
    """Amid et al. 2019, equations 1 to 5 in float64, the normaliser by root finding, the gradient by differences."""

    def log_t(x: Array, t: float) -> Array:
        return np.log(x) if t == 1 else (x ** (1 - t) - 1) / (1 - t)

    def exp_t(x: Array, t: float) -> Array:
        return np.exp(x) if t == 1 else np.maximum(1 + (1 - t) * x, 0) ** (1 / (1 - t))

    def one(a: Array, y: Array) -> float:
        low, high = a.max() - 1e-9, a.max() - float(log_t(np.array(1 / len(a)), t2)) + 1e-9
        constant = brentq(lambda c: exp_t(a - c, t2).sum() - 1, low, high, xtol=1e-14, rtol=1e-14)
        p, on = exp_t(a - constant, t2), y > 0
        fit = (y[on] * (log_t(y[on], t1) - log_t(p[on], t1))).sum()
        return float(fit - ((y ** (2 - t1) - p ** (2 - t1)) / (2 - t1)).sum())

    a, y, h = logits.astype(np.float64), targets.astype(np.float64), 1e-5
    slopes = np.zeros_like(a)
    for n in range(len(a)):
        for c, unit in enumerate(np.eye(a.shape[1]) * h):
            slopes[n, c] = (one(a[n] + unit, y[n]) - one(a[n] - unit, y[n])) / (2 * h)
    return np.array([one(*pair) for pair in zip(a, y, strict=True)]), slopes


def assert_close(got: Array, want: Array, rounding: float = 1.0) -> None:
    """1e-5 relative, and some units in the last place of what the values were computed from (`rounding` in size)."""
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=16 * float(np.finfo(np.float32).eps) * rounding)


@pytest.mark.parametrize("kind", ["hard", "smoothed", "soft"])
@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("engine", [by_torch, by_mlx])
def test_values_and_gradients_are_the_public_references(
    engine: Any, name: str, options: dict[str, float], kind: str
) -> None:
    logits, targets = rows(kind)
    got, slopes = engine(LossSpec(name, options), logits, targets)
    want, true_slopes = reference(name, options, logits, targets)
    assert got.shape == (len(logits),)
    assert_close(got, want)
    assert_close(slopes, true_slopes)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize(("name", "options"), CASES + STEEP)
def test_gradients_pass_the_numerical_check(name: str, options: dict[str, float], kind: str) -> None:
    logits, targets = (torch.tensor(a, dtype=torch.float64) for a in rows(kind, count=4, classes=3))
    loss = functools.partial(losses.LOSSES[name], torch_losses.Ops)
    assert torch.autograd.gradcheck(lambda x: loss(x, targets, **options), logits.requires_grad_())


@pytest.mark.parametrize("weights", [(), CLASS_WEIGHTS])
@pytest.mark.parametrize(("name", "options"), CASES + STEEP)
@pytest.mark.parametrize("spread", [0.1, 2.0, 20.0])
def test_losses_and_gradients_of_both_engines_agree(
    name: str, options: dict[str, float], weights: tuple[float, ...], spread: float
) -> None:
    spec = LossSpec(name, options, weights)
    logits, targets = rows("soft", count=64, spread=spread)
    got, want = by_mlx(spec, logits, targets), by_torch(spec, logits, targets)
    for mine, theirs in zip(got, want, strict=True):
        assert_close(mine, theirs, rounding=max(float(np.abs(logits).max()), 1.0))


@pytest.mark.parametrize("kind", ["hard", "smoothed"])
@pytest.mark.parametrize(("name", "options"), CASES + STEEP)
def test_logits_of_plus_and_minus_50_are_finite_and_pull_the_right_way(
    name: str, options: dict[str, float], kind: str
) -> None:
    targets = rows(kind)[1]
    present = targets > 0.5
    right, wrong = np.where(present, 50, -50).astype(np.float32), np.where(present, -50, 50).astype(np.float32)
    found = []
    for logits in (right, wrong):
        mine, theirs = (
            by_mlx(LossSpec(name, options), logits, targets),
            by_torch(LossSpec(name, options), logits, targets),
        )
        for a, b in zip(mine, theirs, strict=True):
            assert np.isfinite(a).all()
            assert np.isfinite(b).all()
            assert_close(a, b, rounding=50)
        found.append(mine)
    if kind == "hard":
        assert (found[1][0] > found[0][0]).all(), "a wrong answer costs more than a right one"
    if name != "bi_tempered":  # which ignores outliers on purpose
        assert (found[1][1][present] < 0).all(), "the wrong answer's class is not pulled up"


def test_bi_tempered_bounds_what_an_outlier_costs() -> None:
    """The paper's bound for t1 < 1: log_t of no probability at all is -1 / (1 - t1)."""
    logits, targets = np.array([[-1e4, 1e4]], np.float32), np.array([[1, 0]], np.float32)
    loss = by_torch(LossSpec("bi_tempered", {"t1": 0.5, "t2": 2.0}), logits, targets)[0]
    assert 1.9 < loss[0] < 2.0


@pytest.mark.parametrize(("classes", "t2", "off"), [(4, 1.2, 1e-5), (10, 1.2, 1e-4), (1000, 1.2, 0.02)])
def test_five_iterations_normalise_the_tempered_softmax(classes: int, t2: float, off: float) -> None:
    logits = torch.tensor(rows("hard", count=500, classes=classes, spread=5.0)[0])
    sums = losses.tempered_log_softmax(torch_losses.Ops, logits, t2).exp().sum(1)
    assert float((sums - 1).abs().max()) < off


def test_compiled_as_in_a_session_it_is_the_same() -> None:
    loss = mlx_losses.make(LossSpec("bi_tempered", LOSS_OPTIONS["bi_tempered"], CLASS_WEIGHTS))
    slopes = mx.grad(lambda x, t: loss(x, t).sum())
    arguments = [mx.array(a) for a in rows("soft", count=8)]
    np.testing.assert_allclose(np.array(mx.compile(slopes)(*arguments)), np.array(slopes(*arguments)), rtol=1e-5)


# Class weights


def test_weighted_cross_entropy_is_torchs_with_probability_targets() -> None:
    logits, targets = rows("soft")
    weight = torch.tensor(CLASS_WEIGHTS)
    x, t = torch.tensor(logits), torch.tensor(targets)
    spec = LossSpec("cross_entropy", class_weights=CLASS_WEIGHTS)
    for each, _ in (by_torch(spec, logits, targets), by_mlx(spec, logits, targets)):
        assert_close(each, F.cross_entropy(x, t, weight, reduction="none").numpy())
        # The batch's mean divides by the samples, not by their class weights, as torch's does for such targets.
        assert float(each.mean()) == pytest.approx(float(F.cross_entropy(x, t, weight)), rel=1e-6)


@pytest.mark.parametrize(("name", "options"), list(LOSS_OPTIONS.items()))
@pytest.mark.parametrize("engine", [by_torch, by_mlx])
def test_a_class_weight_is_the_factor_of_the_samples_of_its_class(
    engine: Any, name: str, options: dict[str, float]
) -> None:
    logits, targets = rows("hard")
    plain, weighted = (
        engine(LossSpec(name, options), logits, targets),
        engine(LossSpec(name, options, CLASS_WEIGHTS), logits, targets),
    )
    factor = np.array(CLASS_WEIGHTS, np.float32)[targets.argmax(1)]
    assert_close(weighted[0], factor * plain[0])
    assert_close(weighted[1], factor[:, None] * plain[1])


def test_weighted_bce_is_torchs_with_the_samples_weights() -> None:
    logits, targets = rows("soft")
    sample = torch.tensor(targets @ np.array(CLASS_WEIGHTS, np.float32))[:, None]
    want = F.binary_cross_entropy_with_logits(
        torch.tensor(logits), torch.tensor(targets), weight=sample, reduction="none"
    ).mean(1)
    assert "bce" not in losses.LINEAR
    for engine in (by_torch, by_mlx):
        assert_close(engine(LossSpec("bce", {}, CLASS_WEIGHTS), logits, targets)[0], want.numpy())


def test_the_numpy_engine_honours_them_too() -> None:
    spec = tiny.spec("convnext", num_classes=CLASSES)
    session = numpy_session.open(
        spec,
        None,
        SessionConfig(
            optim=OptimSpec(name="sgd", momentum=0.0, nesterov=False), loss=LossSpec(class_weights=CLASS_WEIGHTS)
        ),
    )
    batch = Batch(harness.images(spec, 24), rows("soft")[1], np.ones(24, np.float32))
    x = torch.tensor(session.logits(batch.images), requires_grad=True)
    before = session.state().weights["head.bias"]
    result = session.read(
        session.train_step(batch, None, StepHyperparams(lr=1.0, weight_decay=0, ema_decay=0, clip_norm=0))
    )
    weight, targets = torch.tensor(CLASS_WEIGHTS), torch.tensor(batch.targets)
    F.cross_entropy(x, targets, weight).backward()
    assert x.grad is not None
    assert_close(result.losses, F.cross_entropy(x, targets, weight, reduction="none").detach().numpy())
    assert_close(before - session.state().weights["head.bias"], x.grad.sum(0).numpy())


# Names and options


@pytest.mark.parametrize("engine", [torch_losses, mlx_losses])
def test_every_loss_of_the_settings_is_in_the_engine_with_its_options(engine: Any) -> None:
    assert set(losses.LOSSES) == set(LOSS_OPTIONS)
    for name in LOSS_OPTIONS:
        engine.make(LossSpec(name, Loss.model_validate({"name": name}).options()))


@pytest.mark.parametrize("engine", [torch_losses, mlx_losses])
def test_options_that_are_not_the_losss_own_are_refused(engine: Any) -> None:
    with pytest.raises(ConfigError, match=r"'cosine' is not known .* choose cross_entropy, focal"):
        engine.make(LossSpec("cosine"))
    with pytest.raises(ConfigError, match="'focal': found the options none; give gamma, alpha"):
        engine.make(LossSpec("focal"))
    with pytest.raises(ConfigError, match="'bce': found the options gamma; give none"):
        engine.make(LossSpec("bce", {"gamma": 1.0}))


# In training


@pytest.mark.parametrize("weights", [(), (0.5, 3.0, 1.0, 0.25, 1.5)])
@pytest.mark.parametrize("name", list(LOSS_OPTIONS))
def test_twenty_steps_stay_together(name: str, weights: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(torch_session.DEVICE_VARIABLE, "cpu")
    spec = tiny.spec("convnext")
    start = harness.weights(spec)
    loss = LossSpec(name, LOSS_OPTIONS[name], weights)
    curves = [_curve(engine, spec, start, loss) for engine in (mlx_session, torch_session)]
    assert np.abs(curves[0] / curves[1] - 1).max() <= 1e-5


def _curve(engine: Any, spec: Any, start: Weights, loss: LossSpec) -> Array:
    decayed = {n: (1.0, float(v.ndim > 1)) for n, v in start.items() if not is_buffer(n)}
    session = engine.open(spec, start, SessionConfig(optim=OptimSpec(multipliers=decayed), loss=loss, compile=False))
    means = []
    for step in range(20):
        batch = Batch(
            harness.images(spec, 8, seed=step % 5), harness.soft_targets(spec, 8, seed=step), np.ones(8, np.float32)
        )
        result = session.read(session.train_step(batch, mix(step), knobs(step)))
        assert result.finite
        means.append(result.losses.astype(np.float64).mean())
    return np.array(means)
