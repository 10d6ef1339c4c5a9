"""What the training loop relies on in one step and one evaluation, held for every engine alike."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import backends
from backends.contract import Batch, LossSpec, OptimSpec, StepHyperparams, is_buffer
from config.errors import ConfigError
from tests.contract.cases import (
    CLASSES,
    KNOBS,
    OPTIMIZERS,
    PLAIN_SGD,
    SIZE,
    N,
    assert_same,
    batch,
    identity,
    session,
    step,
)


def test_a_module_of_each_engine_opens_sessions(engine: str) -> None:
    assert callable(importlib.import_module(backends.ENGINES[engine].module).open)
    one = session(engine)
    assert (one.group.rank, one.group.world_size) == (0, 1)


@pytest.mark.parametrize("framework", ["torch", "mlx"])
def test_each_call_draws_its_own_masks(framework: str) -> None:
    one = session(framework, drop_rate=0.5)
    frozen = KNOBS._replace(lr=0.0)
    a, b = step(one, batch(), knobs=frozen), step(one, batch(), knobs=frozen)
    assert not np.allclose(a.losses, b.losses, rtol=1e-4)


def test_padding_has_no_influence(engine: str) -> None:
    full = batch()
    weights = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)
    noise = batch(1)
    rest = (weights == 0)[:, None]
    a = Batch(full.images, full.targets, weights)
    b = Batch(
        np.where(rest[..., None, None], noise.images, full.images), np.where(rest, noise.targets, full.targets), weights
    )
    one, two = session(engine), session(engine)
    first, second = step(one, a), step(two, b)
    np.testing.assert_allclose(first.losses[:5], second.losses[:5], rtol=1e-5)
    assert first.grad_norm == pytest.approx(second.grad_norm, rel=1e-5)
    for name, value in one.state().weights.items():
        np.testing.assert_allclose(two.state().weights[name], value, atol=1e-5, err_msg=name)


def test_sample_weights_are_shares_of_the_mean(engine: str) -> None:
    """Doubling every weight changes nothing; a sample of weight 2 counts like the same sample twice."""
    data = batch()
    twice = Batch(*(np.concatenate([a[:4], a[:4]]) for a in data))
    double = Batch(data.images, data.targets, np.array([2, 2, 2, 2, 0, 0, 0, 0], np.float32))
    norms = [step(session(engine), each).grad_norm for each in (twice, double)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_losses_are_unweighted_and_per_sample(engine: str) -> None:
    """Against SciPy's log-softmax of the session's own logits; no dropout, so that both passes are the same."""
    from scipy.special import log_softmax

    one, data = session(engine), batch()
    expected = -(data.targets * log_softmax(one.logits(data.images), axis=1)).sum(axis=1)
    result = step(one, data._replace(weights=np.linspace(0.1, 2, N).astype(np.float32)))
    np.testing.assert_allclose(result.losses, expected, rtol=1e-5)
    assert result.losses.shape == (N,)
    assert result.losses.dtype == np.float32
    assert result.finite


def test_identity_plan_equals_no_plan(engine: str) -> None:
    one, two = session(engine), session(engine)
    a, b = step(one, batch(), None), step(two, batch(), identity())
    np.testing.assert_allclose(a.losses, b.losses, rtol=1e-6)
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "swap"])
def test_mix_equals_the_images_mixed_by_hand(engine: str, kind: str) -> None:
    """Pixels are even, so that their mean is a whole number and the mixed image is an image too."""
    data, order = batch(even=True), np.array([3, 0, 1, 2, 7, 6, 5, 4], np.int32)
    plan, images, own = identity()._replace(permutation=order), data.images.copy(), np.ones(N, np.float32)
    if kind == "mixup":
        own = np.full(N, 0.5, np.float32)
        plan = plan._replace(blend=own, own=own)
        images = ((data.images.astype(int) + data.images[order]) // 2).astype(np.uint8)
    elif kind == "cutmix":
        box = np.array([[0, 4 + i, 2, 20 + i] for i in range(N)], np.int32)
        for i, (top, bottom, left, right) in enumerate(box):
            images[i, top:bottom, left:right] = data.images[order[i], top:bottom, left:right]
        own = np.linspace(0.4, 0.9, N).astype(np.float32)
        plan = plan._replace(box=box, own=own)
    else:
        own = np.zeros(N, np.float32)
        plan, images = plan._replace(blend=own, own=own), data.images[order]
    targets = own[:, None] * data.targets + (1 - own[:, None]) * data.targets[order]
    mixed, by_hand = step(session(engine), data, plan), step(session(engine), Batch(images, targets, data.weights))
    np.testing.assert_allclose(mixed.losses, by_hand.losses, rtol=2e-5)
    assert mixed.grad_norm == pytest.approx(by_hand.grad_norm, rel=1e-4)


def test_ema_follows_every_weight(engine: str) -> None:
    one = session(engine, OPTIMIZERS["adamw"])
    start = one.state().weights
    step(one, batch(), knobs=KNOBS._replace(ema_decay=0.75))
    now = one.state()
    assert now.ema is not None
    for name, value in now.weights.items():
        np.testing.assert_allclose(now.ema[name], 0.75 * start[name] + 0.25 * value, atol=1e-6, err_msg=name)
    step(one, batch(1), knobs=KNOBS._replace(ema_decay=0.0))
    images = batch(2).images
    np.testing.assert_allclose(one.logits(images, "ema"), one.logits(images), atol=1e-6)


def test_ema_logits_of_a_session_without_one_are_refused(engine: str) -> None:
    one = session(engine)
    assert one.state().ema is None
    with pytest.raises(ConfigError, match="EMA"):
        one.logits(batch().images, "ema")


def test_clipping_limits_the_update_and_reports_the_norm_before(engine: str) -> None:
    """Plain SGD at rate 1 moves the weights by exactly the clipped gradient."""
    moved = {}
    for limit in (0.0, 1e9, 0.1):
        one = session(engine, PLAIN_SGD)
        before = one.state().weights
        result = step(one, batch(), knobs=StepHyperparams(1.0, 0.0, 0.0, limit))
        after = one.state().weights
        length = np.sqrt(sum(np.sum((after[n] - before[n]).astype(np.float64) ** 2) for n in before))
        moved[limit] = (float(length), result.grad_norm)
    assert moved[0.0][0] == pytest.approx(moved[0.0][1], rel=1e-4)
    assert moved[1e9][0] == pytest.approx(moved[1e9][1], rel=1e-4)
    assert moved[0.1][0] == pytest.approx(0.1, rel=1e-4)
    assert moved[0.1][1] == pytest.approx(moved[0.0][1], rel=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("after", [0, 2])
def test_a_step_that_is_not_finite_changes_nothing(engine: str, name: str, after: int) -> None:
    one, clean = session(engine, OPTIMIZERS[name]), session(engine, OPTIMIZERS[name])
    for i in range(after):
        step(one, batch(i))
        step(clean, batch(i))
    before = one.state()
    data = batch()
    poisoned = data.targets.copy()
    poisoned[2] = np.inf
    for bad in (data._replace(targets=poisoned), data._replace(weights=np.zeros(N, np.float32))):
        assert not step(one, bad).finite
    state = one.state()
    assert state.calls == before.calls + 2
    assert_same(replace(state, calls=before.calls), before)
    step(one, batch(5))
    step(clean, batch(5))
    assert one.state().step == after + 1
    assert_same(replace(one.state(), calls=0), replace(clean.state(), calls=0))


@pytest.mark.parametrize("framework", ["torch", "mlx"])
def test_a_step_that_is_not_finite_leaves_running_statistics(framework: str) -> None:
    one = session(framework, OPTIMIZERS["sgd"], family="resnet")
    step(one, batch())
    before = one.state()
    assert any(is_buffer(n) for n in before.weights)
    data = batch(1)
    assert not step(one, data._replace(weights=np.zeros(N, np.float32))).finite
    assert_same(replace(one.state(), calls=before.calls), before)
    assert step(one, data).finite
    moved = one.state()
    for name in filter(is_buffer, before.weights):
        assert not np.array_equal(moved.weights[name], before.weights[name]), name
        assert moved.ema is not None
        expected = 0.9 * before.ema[name] + 0.1 * moved.weights[name]
        np.testing.assert_allclose(moved.ema[name], expected, rtol=1e-5, atol=1e-6)


def test_logits_of_any_number_of_images(engine: str) -> None:
    one = session(engine)
    images = np.random.default_rng(0).integers(0, 256, (70, SIZE, SIZE, 3), dtype=np.uint8)
    everything = one.logits(images)
    assert everything.dtype == np.float32
    for count in (0, 1, 3):
        some = one.logits(images[:count])
        assert some.shape == (count, CLASSES)
        assert some.dtype == np.float32
        np.testing.assert_allclose(some, everything[:count], atol=1e-5)


def test_logits_are_of_evaluation_mode_and_change_nothing(engine: str) -> None:
    one = session(engine, drop_rate=0.9, drop_path_rate=0.5)
    before = one.state()
    images = batch().images
    np.testing.assert_array_equal(one.logits(images), one.logits(images))
    assert_same(one.state(), before)
    plain = session(engine, weights=before.weights)
    np.testing.assert_allclose(one.logits(images), plain.logits(images), atol=1e-6)


def test_bf16_keeps_fp32_weights_and_stays_near_fp32(engine: str) -> None:
    full, half = session(engine, OPTIMIZERS["adamw"]), session(engine, OPTIMIZERS["adamw"], precision="bf16")
    half.load(full.state())
    for i in range(3):
        a, b = step(full, batch(i)), step(half, batch(i))
        np.testing.assert_allclose(b.losses, a.losses, rtol=0.05)
        assert b.losses.dtype == np.float32
    state = half.state()
    assert {v.dtype for v in (*state.weights.values(), *state.optimizer.values())} == {np.dtype(np.float32)}
    assert half.logits(batch().images).dtype == np.float32


def test_multipliers_freeze_and_spare_single_weights(engine: str) -> None:
    names = sorted(session(engine).state().weights)
    frozen, spared, rest = names[0], names[1], names[1:]
    multipliers = {frozen: (0.0, 1.0), spared: (1.0, 0.0)}
    some, plain, dry = (
        session(engine, OptimSpec(name="sgd", momentum=0.0, nesterov=False, multipliers=m))
        for m in (multipliers, {}, {})
    )
    start = some.state().weights
    for one, decay in ((some, 0.5), (plain, 0.5), (dry, 0.0)):
        step(one, batch(), knobs=StepHyperparams(0.1, decay, 0.0, 0.0))
    np.testing.assert_array_equal(some.state().weights[frozen], start[frozen])
    np.testing.assert_allclose(some.state().weights[spared], dry.state().weights[spared], atol=1e-7)
    for name in rest:
        if name != spared:
            np.testing.assert_allclose(some.state().weights[name], plain.state().weights[name], atol=1e-7)


def test_results_can_be_read_late_and_in_order(engine: str) -> None:
    one, two = session(engine), session(engine)
    pending = [one.train_step(batch(i), None, KNOBS) for i in range(3)]
    late = [one.read(p).losses for p in pending]
    np.testing.assert_array_equal(late, [step(two, batch(i)).losses for i in range(3)])


def test_the_caller_may_reuse_its_arrays(engine: str) -> None:
    one, two = session(engine), session(engine)
    data = batch()
    pending = one.train_step(data, None, KNOBS)
    for array in data:
        array[:] = 0
    np.testing.assert_array_equal(one.read(pending).losses, step(two, batch()).losses)


def test_updates_lower_the_loss_of_a_batch_that_is_seen_again(engine: str) -> None:
    one, data = session(engine), batch()
    first = step(one, data).losses.mean()
    for _ in range(15):
        last = step(one, data, knobs=KNOBS._replace(lr=5e-3)).losses.mean()
    assert last < 0.9 * first


@pytest.mark.parametrize("wrong", [{"optim": OptimSpec(multipliers={"nowhere": (1.0, 1.0)})}, {"loss": LossSpec("l9")}])
def test_unknown_names_are_refused(engine: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"nowhere|l9"):
        session(engine, **wrong)


def test_describe_reports_engine_device_precision_memory_and_versions(engine: str) -> None:
    one = session(engine, precision="fp32")
    said = one.describe()
    assert said["engine"] == engine
    assert said["precision"] == "fp32"
    assert isinstance(said["device"], str)
    assert all(isinstance(v, str) for v in said["versions"].values())
    assert all(isinstance(v, int) and v >= 0 for v in said["memory"].values())
    one.close()
