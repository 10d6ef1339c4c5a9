"""How every engine limits, divides and restricts an update: clipping, micro-batches, a frozen backbone, Lion, Muon."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from timm.utils import adaptive_clip_grad

from backends.contract import MemorySpec, MixPlan, OptimSpec, StepHyperparams, Weights, is_buffer
from config.errors import ConfigError
from tests.contract.cases import KNOBS, PLAIN_SGD, N, assert_same, batch, session, step

RAW = StepHyperparams(lr=1.0, weight_decay=0.0, ema_decay=0.0, clip_norm=0.0)
FROZEN = KNOBS._replace(frozen=True)


def moved(
    engine: str, optim: OptimSpec = PLAIN_SGD, knobs: StepHyperparams = RAW, **options: Any
) -> tuple[Weights, Weights]:
    """The weights before one step, and how they changed: with the default optimizer minus the gradients."""
    one = session(engine, optim, **options)
    before = one.state().weights
    step(one, batch(), knobs=knobs)
    after = one.state().weights
    return before, {n: before[n] - after[n] for n in before}


def head_of(engine: str, family: str = "convnext") -> frozenset[str]:
    prefix = {"numpy": "head", "convnext": "head.fc", "resnet": "fc"}["numpy" if engine == "numpy" else family]
    return frozenset({f"{prefix}.weight", f"{prefix}.bias"})


@pytest.mark.parametrize(
    "limits", [{"clip_factor": 0.02}, {"clip_value": 0.01}, {"clip_factor": 0.05, "clip_value": 0.02}]
)
def test_gradients_are_limited_as_timm_and_torch_do(engine: str, limits: dict[str, float]) -> None:
    """In the order that the contract gives, the norm last; adaptive clipping spares the head."""
    head = head_of(engine) if engine != "numpy" else frozenset({"head.bias"})
    weights, gradients = moved(engine)
    parameters = {n: torch.nn.Parameter(torch.from_numpy(w)) for n, w in weights.items()}
    for name, parameter in parameters.items():
        parameter.grad = torch.from_numpy(gradients[name].copy())
    if "clip_factor" in limits:
        adaptive_clip_grad([p for n, p in parameters.items() if n not in head], limits["clip_factor"])
    if "clip_value" in limits:
        torch.nn.utils.clip_grad_value_(parameters.values(), limits["clip_value"])
    torch.nn.utils.clip_grad_norm_(parameters.values(), 0.05)
    _, limited = moved(engine, replace(PLAIN_SGD, head=head, **limits), RAW._replace(clip_norm=0.05))  # type: ignore[arg-type]
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        np.testing.assert_allclose(limited[name], parameter.grad.numpy(), rtol=1e-4, atol=2e-7, err_msg=name)
    changed = [n for n in weights if not np.allclose(limited[n], gradients[n], rtol=1e-3, atol=1e-7)]
    assert changed, "limits that change nothing would prove nothing"


@pytest.mark.parametrize("size", [1, 4])
def test_micro_batches_give_the_whole_batchs_gradients(engine: str, size: int) -> None:
    """Sample weights, of which one part has none at all, and mixing partners in other parts."""
    data = batch()._replace(weights=np.array([1, 0.5, 1, 2, 0, 0, 0, 0], np.float32))
    rng, ones = np.random.default_rng(0), np.ones(N, np.float32)
    own = rng.uniform(0.3, 1, N).astype(np.float32)
    mix = MixPlan(rng.permutation(N).astype(np.int32), own, np.zeros((N, 4), np.int32), own * ones)
    states, results = [], []
    for memory in (MemorySpec(), MemorySpec(micro_batch=size)):
        one = session(engine, replace(PLAIN_SGD, ema=True), memory=memory)
        results.append(step(one, data, mix, RAW._replace(ema_decay=0.5, clip_norm=0.1)))
        states.append(one.state())
    whole, parts = results
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=2e-6)
    assert parts.grad_norm == pytest.approx(whole.grad_norm, rel=1e-6)
    start = session(engine).state().weights
    gradient, found = (np.concatenate([(s.weights[n] - start[n]).ravel() for n in start]) for s in states)
    assert np.linalg.norm(found - gradient) <= 1e-6 * np.linalg.norm(
        np.concatenate([w.ravel() for w in start.values()])
    )
    assert np.abs(found - gradient).max() <= 1e-6
    assert states[0].step == states[1].step == 1


def test_a_micro_batch_that_does_not_divide_the_batch_is_refused(engine: str) -> None:
    one = session(engine, memory=MemorySpec(micro_batch=3))
    with pytest.raises(ConfigError, match=r"train\.micro_batch 3 does not divide the batch of 8"):
        step(one, batch())


def test_a_part_that_is_not_finite_spoils_the_update_and_nothing_else(engine: str) -> None:
    one = session(engine, OptimSpec(ema=True), memory=MemorySpec(micro_batch=4))
    step(one, batch())
    before, data = one.state(), batch(1)
    data.targets[1] = np.inf
    assert not step(one, data).finite
    assert_same(replace(one.state(), calls=before.calls), before)


def test_a_frozen_step_trains_the_head_alone(engine: str) -> None:
    head = head_of(engine)
    one = session(engine, OptimSpec(head=head, ema=True))
    before = one.state()
    result = step(one, batch(), knobs=FROZEN)
    after = one.state()
    assert (after.step, after.frozen_steps) == (1, 1)
    for name in before.weights:
        assert np.array_equal(before.weights[name], after.weights[name]) == (name not in head), name
    for key, moment in after.optimizer.items():
        assert np.any(moment) == (key.partition(".")[2] in head), key
    if engine != "numpy":
        assert result.grad_norm < step(session(engine, OptimSpec(head=head)), batch()).grad_norm
    step(one, batch(), knobs=KNOBS)
    assert one.state().frozen_steps == 1
    assert all(not np.array_equal(after.weights[n], w) for n, w in one.state().weights.items())


@pytest.mark.parametrize("framework", ["torch", "mlx"])
def test_the_backbone_starts_as_a_fresh_optimizer_would(framework: str) -> None:
    """After frozen steps in which nothing moved (rate 0), its first update is AdamW's first, also after a resume."""
    spec = OptimSpec(head=head_of(framework))
    one, other, fresh = (session(framework, spec) for _ in range(3))
    for i in range(3):
        step(one, batch(i), knobs=FROZEN._replace(lr=0.0))
    other.load(one.state())
    for each in (one, other, fresh):
        step(each, batch(5))
    wanted = fresh.state().weights
    for found in (one.state().weights, other.state().weights):
        for name in wanted.keys() - spec.head:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("framework", ["torch", "mlx"])
def test_frozen_normalisation_uses_its_statistics_and_leaves_them(framework: str) -> None:
    from scipy.special import log_softmax

    one = session(framework, OptimSpec(head=head_of(framework, "resnet")), family="resnet")
    step(one, batch(1))
    before, data = one.state(), batch()
    expected = -(data.targets * log_softmax(one.logits(data.images), axis=1)).sum(axis=1)
    np.testing.assert_allclose(step(one, data, knobs=FROZEN).losses, expected, rtol=1e-5)
    for name in filter(is_buffer, before.weights):
        np.testing.assert_array_equal(one.state().weights[name], before.weights[name], err_msg=name)
    step(one, data)
    assert any(not np.array_equal(one.state().weights[n], before.weights[n]) for n in filter(is_buffer, before.weights))


def test_freezing_without_a_head_is_refused(engine: str) -> None:
    with pytest.raises(ConfigError, match="freeze_epochs"):
        step(session(engine), batch(), knobs=FROZEN)


@pytest.mark.parametrize("name", ["lion", "muon"])
def test_a_resumed_run_goes_on_bit_for_bit(engine: str, name: str) -> None:
    if (engine, name) == ("numpy", "muon"):
        with pytest.raises(ConfigError, match=r"muon.*choose adamw, sgd, lion"):
            session(engine, OptimSpec(name="muon"))
        return
    matrices = frozenset({"stages.2.blocks.0.mlp.fc1.weight", "stages.3.downsample.1.weight"})
    spec = OptimSpec(name=name, ema=True, matrices=matrices if name == "muon" else frozenset())  # type: ignore[arg-type]
    whole, first, second = (session(engine, spec, drop_rate=0.2) for _ in range(3))
    for i in range(4):
        step(whole, batch(i))
    for i in range(2):
        step(first, batch(i))
    second.load(first.state())
    for i in range(2, 4):
        step(second, batch(i))
    assert_same(second.state(), whole.state())
    if name == "muon":
        kept = {key.partition(".")[2]: key.partition(".")[0] for key in whole.state().optimizer}
        assert {n for n, slot in kept.items() if slot == "momentum_buffer"} == matrices
    before = whole.state()
    assert not step(whole, batch()._replace(weights=np.zeros(N, np.float32))).finite
    assert_same(replace(whole.state(), calls=before.calls), before)


@pytest.mark.parametrize("wrong", [{"matrices": frozenset({"nowhere"})}, {"head": frozenset({"nowhere"})}])
def test_parameters_that_are_not_there_are_refused(engine: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        session(engine, OptimSpec(**wrong))


@pytest.mark.parametrize("framework", ["torch", "mlx"])
@pytest.mark.parametrize("family", ["convnext", "resnet"])
def test_computing_blocks_again_changes_no_number(framework: str, family: str) -> None:
    """With dropped paths, dropout and BatchNorm: the same masks, and statistics that move once a step."""
    runs = []
    for memory in (MemorySpec(), MemorySpec(recompute=True), MemorySpec(recompute=True, micro_batch=4)):
        one = session(
            framework, OptimSpec(ema=True), family=family, drop_rate=0.3, drop_path_rate=0.5, seed=1, memory=memory
        )
        results = [step(one, batch(i)) for i in range(4)]
        runs.append((np.array([r.losses for r in results]), [r.grad_norm for r in results], one))
    (want, norms, plain), (found, again, checked), (parts, _, _) = runs
    np.testing.assert_allclose(found, want, rtol=1e-6)
    np.testing.assert_allclose(again, norms, rtol=1e-6)
    state, other = plain.state(), checked.state()
    for name, value in state.weights.items():
        np.testing.assert_allclose(other.weights[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
    np.testing.assert_array_equal(checked.logits(batch(9).images), checked.logits(batch(9).images))
    np.testing.assert_allclose(checked.logits(batch(9).images), plain.logits(batch(9).images), rtol=1e-4, atol=1e-5)
    assert np.isfinite(parts).all()
