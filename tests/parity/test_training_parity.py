"""The two engines train alike: the same losses, weights and moments from the same batches, and each other's state."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import numpy as np
import pytest

from backends.contract import (
    Batch,
    MixPlan,
    OptimSpec,
    Session,
    SessionConfig,
    StepHyperparams,
    TrainState,
    Weights,
    is_buffer,
)
from backends.mlx import session as mlx_session
from backends.torch import session as torch_session
from models.registry import ModelSpec
from tests import tiny
from tests.parity import harness

STEPS = 30
SPEC = tiny.spec("convnext")
ENGINES: dict[str, ModuleType] = {"mlx": mlx_session, "torch": torch_session}


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(torch_session.DEVICE_VARIABLE, "cpu")


def optimizer(weights: Weights, name: str = "adamw") -> OptimSpec:
    """Biases and norms are not decayed, the stem learns at a tenth of the rate, and an EMA is kept."""
    rates = {n: 0.1 if n.startswith("stem.") else 1.0 for n in weights if not is_buffer(n)}
    multipliers = {n: (rate, 0.0 if weights[n].ndim <= 1 else 1.0) for n, rate in rates.items()}
    return OptimSpec(name=name, ema=True, multipliers=multipliers)  # type: ignore[arg-type]


def knobs(step: int, peak: float = 1e-3) -> StepHyperparams:
    """Warm-up, then cosine."""
    share = (step + 1) / 5 if step < 5 else 0.5 * (1 + math.cos(math.pi * (step - 5) / (STEPS - 5)))
    return StepHyperparams(lr=peak * share, weight_decay=0.05, ema_decay=0.9, clip_norm=1.0)


def batch(step: int, size: int = 8, pixels: int = 0) -> Batch:
    weights = np.ones(size, np.float32)
    weights[-1] = step % 2  # every other batch is short by one
    spec = replace(SPEC, preprocessing=replace(SPEC.preprocessing, size=pixels)) if pixels else SPEC
    return Batch(harness.images(spec, size, seed=step % 5), harness.soft_targets(SPEC, size, seed=step), weights)


def mix(step: int, size: int = 8) -> MixPlan | None:
    """By turns nothing, Mixup, CutMix."""
    rng = np.random.default_rng(step)
    permutation, ones = rng.permutation(size).astype(np.int32), np.ones(size, np.float32)
    none = np.zeros((size, 4), np.int32)
    if step % 3 == 0:
        return None
    if step % 3 == 1:
        lam = rng.beta(0.8, 0.8, size).astype(np.float32)
        return MixPlan(permutation, lam, none, lam)
    box = np.tile(np.array([4, 20, 8, 24], np.int32), (size, 1))
    return MixPlan(permutation, ones, box, ones - np.float32(16 * 16 / SPEC.preprocessing.size**2))


def opened(engine: str, weights: Weights, name: str = "adamw", seed: int = 0, spec: ModelSpec = SPEC) -> Session:
    return ENGINES[engine].open(spec, weights, SessionConfig(optim=optimizer(weights, name), seed=seed, compile=False))


def trained(session: Session, first: int, last: int, peak: float = 1e-3) -> np.ndarray:
    """float64 `[steps, 2]`: mean loss and gradient norm of the steps from `first` to before `last`."""
    rows = []
    for step in range(first, last):
        result = session.read(session.train_step(batch(step), mix(step), knobs(step, peak)))
        assert result.finite
        rows.append((float(np.average(result.losses, weights=batch(step).weights)), result.grad_norm))
    return np.array(rows)


def distance(a: Weights, b: Weights) -> float:
    """The worst parameter, in relative L2."""
    assert a.keys() == b.keys()
    return max(float(np.linalg.norm(a[n] - b[n]) / (np.linalg.norm(b[n]) + 1e-30)) for n in b)


def whole(a: Weights, b: Weights) -> float:
    """All arrays together, in relative L2."""
    gaps, sizes = zip(*((np.linalg.norm(a[n] - b[n]), np.linalg.norm(b[n])) for n in b), strict=True)
    return float(np.linalg.norm(gaps) / np.linalg.norm(sizes))


@pytest.fixture(scope="module")
def weights() -> Weights:
    return harness.weights(SPEC)


def test_mlx_trains_as_torchs_own_loop_does() -> None:
    found = harness.check_training(SPEC, STEPS)
    assert found.loss.mlx <= 1e-5
    assert found.ema.mlx <= max(3 * found.ema.floor, 1e-5)


@pytest.mark.parametrize(("name", "peak"), [("adamw", 1e-3), ("sgd", 1e-2)])
def test_the_two_sessions_stay_together(weights: Weights, name: str, peak: float) -> None:
    mine, theirs = opened("mlx", weights, name), opened("torch", weights, name)
    got, want = trained(mine, 0, STEPS, peak), trained(theirs, 0, STEPS, peak)
    assert np.abs(got[:, 0] / want[:, 0] - 1).max() <= 1e-5, "losses"
    assert np.abs(got[:, 1] / want[:, 1] - 1).max() <= 1e-4, "gradient norms"
    ours, reference = mine.state(), theirs.state()
    assert whole(ours.weights, reference.weights) <= 1e-5
    assert ours.ema is not None
    assert reference.ema is not None
    assert whole(ours.ema, reference.ema) <= 1e-5
    assert whole(reference.ema, reference.weights) > 1e-4, "an average that is the weights would prove nothing"
    images = harness.images(SPEC, 4)
    for which in ("live", "ema"):
        logits = theirs.logits(images, which)
        assert np.abs(mine.logits(images, which) - logits).max() <= 1e-4 * logits.std()


def test_the_moments_of_one_step_agree_by_name(weights: Weights) -> None:
    before = opened("torch", weights)
    trained(before, 0, 3)
    middle = before.state()
    after: list[TrainState] = []
    for engine in ENGINES:
        session = opened(engine, weights)
        session.load(middle)
        trained(session, 3, 4)
        after.append(session.state())
    assert after[0].step == after[1].step == 4
    assert distance(after[0].optimizer, after[1].optimizer) <= 1e-5
    assert distance(after[0].weights, after[1].weights) <= 1e-5


@pytest.mark.parametrize(("first", "second"), [("torch", "mlx"), ("mlx", "torch")])
def test_a_run_goes_on_on_the_other_engine(weights: Weights, first: str, second: str) -> None:
    whole_run = opened(first, weights)
    want = trained(whole_run, 0, 16)
    begun, other = opened(first, weights), opened(second, weights)
    trained(begun, 0, 8)
    other.load(begun.state())
    got = trained(other, 8, 16)
    assert np.abs(got[:, 0] / want[8:, 0] - 1).max() <= 1e-5


def test_the_compiled_update_is_traced_once_and_does_what_the_eager_one_does(weights: Weights) -> None:
    eager, spec = opened("mlx", weights), optimizer(weights)
    compiled = mlx_session.open(SPEC, weights, SessionConfig(optim=spec, compile=True))
    got, want = trained(compiled, 0, 6), trained(eager, 0, 6)
    assert compiled.describe()["traces"] == 1, "a rate or a mix plan has retraced the update"
    assert np.abs(got[:, 0] / want[:, 0] - 1).max() <= 1e-6
    assert whole(compiled.state().weights, eager.state().weights) <= 1e-5


@pytest.mark.parametrize("compile", [False, True])
def test_progressive_resizing_stays_together_and_traces_each_size_once(weights: Weights, compile: bool) -> None:
    """Ten steps of 16 small images, then ten of 8 at the full size: the engines agree, and nothing is traced anew."""
    losses: dict[str, list[float]] = {}
    for engine, module in ENGINES.items():
        session = module.open(
            SPEC, weights, SessionConfig(optim=optimizer(weights), compile=compile and engine == "mlx")
        )
        losses[engine] = []
        for step in range(20):
            given = batch(step, 16, 32) if step < 10 else batch(step)
            result = session.read(session.train_step(given, None, knobs(step)))
            losses[engine].append(float(np.average(result.losses, weights=given.weights)))
        if session.describe().get("compiled"):
            assert session.describe()["traces"] == 2
    np.testing.assert_allclose(losses["mlx"], losses["torch"], rtol=1e-5)


def test_dropped_paths_are_redrawn_after_a_resume_and_the_users_generator_is_left_alone(weights: Weights) -> None:
    spec = replace(SPEC, drop_path_rate=0.5, drop_rate=0.3)
    mx.random.seed(123)
    untouched = np.array(mx.random.uniform(shape=(4,)))
    mx.random.seed(123)
    straight, other_seed = opened("mlx", weights, spec=spec), opened("mlx", weights, seed=1, spec=spec)
    want = trained(straight, 0, 6)
    begun, resumed = opened("mlx", weights, spec=spec), opened("mlx", weights, spec=spec)
    trained(begun, 0, 3)
    resumed.load(begun.state())
    got = trained(resumed, 3, 6)
    np.testing.assert_array_equal(got, want[3:])
    assert (trained(other_seed, 0, 1) != want[:1]).all(), "another seed drops other paths"
    np.testing.assert_array_equal(np.array(mx.random.uniform(shape=(4,))), untouched)


def test_an_update_that_is_not_finite_changes_nothing_on_the_device() -> None:
    spec = tiny.spec("resnet")
    values = harness.weights(spec)
    session = mlx_session.open(spec, values, SessionConfig(optim=OptimSpec(ema=True), compile=False))
    good = Batch(harness.images(spec, 8), harness.soft_targets(spec, 8), np.ones(8, np.float32))
    session.read(session.train_step(good, None, knobs(0)))
    before = session.state()
    bad = good._replace(targets=np.full_like(good.targets, np.inf))
    result = session.read(session.train_step(bad, None, knobs(1)))
    after = session.state()
    assert not result.finite
    assert (after.step, after.calls) == (1, 2)
    for mine, kept in ((after.weights, before.weights), (after.optimizer, before.optimizer), (after.ema, before.ema)):
        assert mine is not None
        assert kept is not None
        for name in kept:
            np.testing.assert_array_equal(mine[name], kept[name], err_msg=name)
    assert session.read(session.train_step(good, None, knobs(1))).finite


@pytest.mark.parametrize("family", ["convnext", "resnet"])
def test_bf16_follows_fp32_and_keeps_float32_masters(family: str) -> None:
    spec = tiny.spec(family)
    values = harness.weights(spec)
    runs = []
    for precision in ("fp32", "bf16"):
        session = mlx_session.open(spec, values, SessionConfig(precision=precision, compile=False))
        losses = []
        for _ in range(8):
            one = Batch(harness.images(spec, 8), harness.soft_targets(spec, 8), np.ones(8, np.float32))
            losses.append(session.read(session.train_step(one, None, knobs(4))).losses.mean())
        runs.append((np.array(losses), session.state()))
    (exact, _), (rounded, state) = runs
    assert exact[-1] < 0.9 * exact[0]
    assert np.abs(rounded / exact - 1).max() < 0.03
    masters = np.concatenate([v.ravel() for n, v in state.weights.items() if not is_buffer(n)])
    assert (masters.view(np.uint32) & 0xFFFF).any(), "masters were rounded to bf16"


@pytest.mark.skipif(sys.platform != "linux", reason="only MLX's Linux wheel brings the slow reference BLAS")
def test_mlx_on_linux_multiplies_with_openblas_and_right() -> None:
    program = (
        "import backends.mlx, ctypes, numpy as np, mlx.core as mx\n"
        "assert ctypes.CDLL(None).openblas_get_config\n"
        "a = np.random.default_rng(0).normal(size=(2, 33, 65)).astype(np.float32)\n"
        "got = np.array(mx.array(a) @ mx.array(a).swapaxes(1, 2))\n"
        "assert np.abs(got - a @ a.swapaxes(1, 2)).max() < 1e-4\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
