"""The whole state of a session: copied out, taken over, refused when it does not fit, and enough to go on from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from backends.contract import TrainState, is_buffer
from config.errors import WeightsError
from tests import tiny
from tests.contract.cases import (
    CLASSES,
    KNOBS,
    OPTIMIZERS,
    assert_same,
    batch,
    session,
    step,
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_run_equals_uninterrupted_one(engine: str, name: str) -> None:
    drop = {"drop_rate": 0.2, "drop_path_rate": 0.2}
    whole, first = session(engine, OPTIMIZERS[name], seed=7, **drop), session(engine, OPTIMIZERS[name], seed=7, **drop)
    knobs = [KNOBS._replace(lr=1e-3 * (i + 1)) for i in range(30)]
    expected = [step(whole, batch(i), knobs=knobs[i]).losses for i in range(30)]
    for i in range(15):
        step(first, batch(i), knobs=knobs[i])
    second = session(engine, OPTIMIZERS[name], seed=7, **drop)
    second.load(first.state())
    got = [step(second, batch(i), knobs=knobs[i]).losses for i in range(15, 30)]
    np.testing.assert_array_equal(got, expected[15:])
    assert_same(second.state(), whole.state())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_goes_round_through_a_session_of_another_seed(engine: str, name: str) -> None:
    one, other = session(engine, OPTIMIZERS[name], seed=1), session(engine, OPTIMIZERS[name], seed=2)
    for i in range(2):
        step(one, batch(i))
    other.load(one.state())
    assert_same(other.state(), one.state())
    images = batch(9).images
    for which in ("live", "ema"):
        np.testing.assert_array_equal(other.logits(images, which), one.logits(images, which))


def test_state_is_a_copy_in_canonical_form(engine: str) -> None:
    one = session(engine, OPTIMIZERS["adamw"])
    before = one.state()
    step(one, batch())
    after = one.state()
    assert any(not np.array_equal(before.weights[n], after.weights[n]) for n in before.weights)
    parameters = [n for n in after.weights if not is_buffer(n)]
    assert set(after.optimizer) == {f"{kind}.{n}" for kind in ("exp_avg", "exp_avg_sq") for n in parameters}
    for name in parameters:
        assert after.optimizer[f"exp_avg.{name}"].shape == after.weights[name].shape
    everything = [*after.weights.values(), *(after.ema or {}).values(), *after.optimizer.values()]
    assert {a.dtype for a in everything} == {np.dtype(np.float32)}
    assert all(a.flags.c_contiguous for a in everything)
    for array in everything:
        array[...] = 7
    again = one.state()
    assert not any(np.all(a == 7) for a in (*again.weights.values(), *again.optimizer.values()))


@pytest.mark.parametrize("framework", ["torch", "mlx"])
def test_weights_have_timms_names_and_shapes(framework: str) -> None:
    import timm

    row = tiny.TINY["convnext"]
    reference = timm.create_model(row.arch, num_classes=CLASSES, **row.args).state_dict()
    expected = {n: tuple(t.shape) for n, t in reference.items()}
    assert {n: a.shape for n, a in session(framework).state().weights.items()} == expected


def test_one_seed_gives_equal_sessions_and_another_does_not(engine: str) -> None:
    drop: dict[str, Any] = {"drop_rate": 0.3, "drop_path_rate": 0.3}
    one, same, other = (session(engine, seed=seed, **drop) for seed in (3, 3, 4))
    assert_same(one.state(), same.state())
    theirs = other.state().weights
    assert any(not np.array_equal(value, theirs[name]) for name, value in one.state().weights.items())
    a, b = step(one, batch()), step(same, batch())
    np.testing.assert_array_equal(a.losses, b.losses)


def test_given_weights_are_the_ones_in_use(engine: str) -> None:
    source = session(engine, seed=5)
    weights = source.state().weights
    one = session(engine, OPTIMIZERS["adamw"], seed=6, weights=weights)
    for held in (one.state().weights, one.state().ema):
        assert held is not None
        for name, value in weights.items():
            np.testing.assert_array_equal(held[name], value)
    images = batch().images
    np.testing.assert_array_equal(one.logits(images), source.logits(images))


def test_weights_of_another_model_are_refused(engine: str) -> None:
    weights = session(engine).state().weights
    name = sorted(weights)[0]
    for wrong in (
        {n: w for n, w in weights.items() if n != name},
        {**weights, "nowhere.weight": np.zeros(3, np.float32)},
        {**weights, name: np.zeros((2, 2, 2), np.float32)},
    ):
        with pytest.raises(WeightsError, match=rf"{name}|nowhere\.weight"):
            session(engine, weights=wrong)


def broken(state: TrainState, part: str, kind: str) -> TrainState:
    arrays: dict[str, Any] = dict(getattr(state, part))
    name = sorted(arrays)[-1]
    if kind == "missing":
        del arrays[name]
    elif kind == "unexpected":
        arrays["nowhere.weight"] = np.zeros(3, np.float32)
    else:
        arrays[name] = np.zeros((1, 2, 3), np.float32)
    changed: dict[str, Any] = {part: arrays}
    return replace(state, **changed)


@pytest.mark.parametrize("part", ["weights", "ema", "optimizer"])
def test_a_state_that_does_not_fit_changes_nothing(engine: str, part: str) -> None:
    one, other = session(engine, OPTIMIZERS["adamw"], seed=1), session(engine, OPTIMIZERS["adamw"], seed=2)
    step(other, batch())
    before, good = one.state(), other.state()
    for kind in ("missing", "unexpected", "mis-shaped"):
        with pytest.raises(WeightsError):
            one.load(broken(good, part, kind))
        assert_same(one.state(), before)
    with pytest.raises(WeightsError):
        one.load(broken(good, part, "mis-shaped"), strict=False)
    assert_same(one.state(), before)


def test_a_state_of_weights_alone_needs_strict_false(engine: str) -> None:
    one, other = session(engine, OPTIMIZERS["adamw"], seed=1), session(engine, seed=2)
    step(other, batch())
    bare = TrainState(other.state().weights)
    with pytest.raises(WeightsError):
        one.load(bare)
    one.load(bare, strict=False)
    state = one.state()
    assert state.ema is not None
    for name, value in bare.weights.items():
        np.testing.assert_array_equal(state.weights[name], value)
        np.testing.assert_array_equal(state.ema[name], value)
    assert all(not np.any(moment) for moment in state.optimizer.values())
