"""What the processes of a group do in these tests: functions of the group, called in each process."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import backends
from backends.contract import (
    Batch,
    LossSpec,
    MemorySpec,
    MixPlan,
    OptimSpec,
    SessionConfig,
    StepHyperparams,
    StepResult,
    TrainState,
)
from backends.group import Group
from config import load
from config.errors import Interrupted, OutOfMemory
from tests import tiny
from training.run import train_run

N, CLASSES, SIZE = 8, 5, 32
KNOBS = StepHyperparams(lr=1e-3, weight_decay=0.05, ema_decay=0.9, clip_norm=1.0)
_HEAD = frozenset({"head.fc.weight", "head.fc.bias"})
_MATRICES = frozenset({"stages.0.blocks.0.mlp.fc1.weight", "stages.2.blocks.1.mlp.fc2.weight"})


class Case(NamedTuple):
    """A training of a few updates: its network, its config, the hyper-parameters and the mixing of each update."""

    family: str
    config: SessionConfig
    knobs: tuple[StepHyperparams, ...] = (KNOBS,) * 3
    mixes: bool = False


PLAIN = SessionConfig(optim=OptimSpec(ema=True), compile=False, seed=3)
# The bias of attention's keys has no effect: its gradient is rounding, which AdamW makes a full step of.
SGD = replace(PLAIN, optim=OptimSpec("sgd", ema=True))
CASES = {
    "adamw, EMA, clipping": Case("convnext", PLAIN),
    "Mixup and CutMix": Case("convnext", PLAIN, mixes=True),
    "gradient accumulation": Case("vit", replace(SGD, memory=MemorySpec(micro_batch=1))),
    "recomputed blocks": Case("vit", replace(SGD, memory=MemorySpec(micro_batch=2, recompute=True))),
    "adaptive clipping, SGD": Case(
        "convnext", replace(PLAIN, optim=OptimSpec("sgd", clip_factor=0.02, clip_value=0.1))
    ),
    "class weights": Case("convnext", replace(PLAIN, loss=LossSpec(class_weights=(1.0, 2.0, 1.0, 0.5, 3.0)))),
    "frozen, then not": Case(
        "convnext",
        replace(PLAIN, optim=OptimSpec(head=_HEAD)),
        (KNOBS._replace(frozen=True), KNOBS._replace(frozen=True), KNOBS, KNOBS),
    ),
    "muon": Case("convnext", replace(PLAIN, optim=OptimSpec("muon", matrices=_MATRICES))),
    "running statistics": Case("resnet", PLAIN),
    "spread parameters": Case("convnext", replace(PLAIN, fsdp=True), mixes=True),
    "spread parameters, accumulation": Case("vit", replace(SGD, fsdp=True, memory=MemorySpec(micro_batch=1))),
}


def batch(step: int) -> Batch:
    """The whole batch of an update, an image of which could not be read."""
    rng = np.random.default_rng(step)
    targets = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, N)]
    weights = np.ones(N, np.float32)
    weights[3] = 0
    return Batch(rng.integers(0, 256, (N, SIZE, SIZE, 3)).astype(np.uint8), targets, weights)


def plan(step: int) -> MixPlan:
    """Partners all over the batch, one half blended and one half cut."""
    rng = np.random.default_rng(100 + step)
    blend = np.where(np.arange(N) % 2, 1.0, 0.7).astype(np.float32)
    box = np.where((np.arange(N) % 2)[:, None], [[4, 20, 8, 24]], 0).astype(np.int32)
    own = np.where(np.arange(N) % 2, 0.75, 0.7).astype(np.float32)
    return MixPlan(rng.permutation(N).astype(np.int32), blend, box, own)


class Trained(NamedTuple):
    """What an update sequence leaves in one process; `digest` is of all tensors that it holds, and `again` the
    state of another session that has loaded it."""

    results: list[StepResult]
    state: TrainState
    digest: str
    logits: NDArray[np.float32]
    again: TrainState | None = None


def train(group: Group, case: Case, engine: str = "torch") -> Trained:
    """The updates of a case, this process with its rows of each batch."""
    session: Any = backends.load(engine).open(tiny.spec(case.family, CLASSES), None, case.config, group)
    each, results = N // group.world_size, []
    for step, knobs in enumerate(case.knobs):
        whole = batch(step)
        mine = whole._replace(images=whole.images[group.rank * each : (group.rank + 1) * each])
        results.append(session.read(session.train_step(mine, plan(step) if case.mixes else None, knobs)))
    state, logits = session.state(), session.logits(batch(0).images)
    if engine == "torch":
        tensors = {} if case.config.fsdp else {**session._tensors, **session._moments}
        held = [t.detach().numpy() for t in tensors.values()]
    else:
        from mlx.utils import tree_flatten

        held = [np.array(array) for _, array in tree_flatten(session._state)]
    digest = hashlib.sha256(b"".join(array.tobytes() for array in held)).hexdigest()
    session.close()
    if not case.config.fsdp:
        return Trained(results, state, digest, logits)
    other: Any = backends.load("torch").open(tiny.spec(case.family, CLASSES), None, replace(case.config, seed=9), group)
    other.logits(batch(0).images)  # gathers what the state then replaces
    other.load(group.broadcast(state))
    np.testing.assert_array_equal(other.logits(batch(0).images), logits)
    return Trained(results, state, digest, logits, other.state())


def all_cases(group: Group, engine: str = "torch") -> dict[str, Trained]:
    """Every case that the engine has, one after the other."""
    return {
        name: train(group, case, engine) for name, case in CASES.items() if engine == "torch" or not case.config.fsdp
    }


def run(group: Group, given: list[str], stop_after: int = -1, engine: str = "torch") -> Path:
    """A whole run by the settings of a command line; with `stop_after` rank 1 asks to stop at that question."""
    asked = 0

    def stop_requested() -> bool:
        nonlocal asked
        asked += 1
        return group.rank == group.world_size - 1 and 0 <= stop_after < asked

    return train_run.run_all(engine, load.parse(given, prog="test"), stop_requested, group)


def stopped(group: Group, given: list[str], stop_after: int, engine: str = "torch") -> str:
    """The folder of a run that was stopped."""
    try:
        run(group, given, stop_after, engine)
    except Interrupted as interrupted:
        return str(interrupted.folder)
    raise AssertionError("it was not stopped")


def run_in_little_memory(group: Group, given: list[str], most: int) -> str:
    """As `run`, where the last process has memory for `most` images at a time; what the fold remembers of it."""
    from backends.torch.session import Session

    step, little = Session.train_step, group.rank == group.world_size - 1

    def limited(session: Session, batch: Batch, *others: Any) -> Any:
        if little and session._config.memory.size(len(batch.images)) > most:
            raise OutOfMemory("the device is full")
        return step(session, batch, *others)

    Session.train_step = limited  # type: ignore[assignment,method-assign]
    return (run(group, given) / "fold_0" / "micro_batch.txt").read_text().strip()


def assert_trained_alike(several: Trained, alone: Trained, case: Case) -> None:
    """Rank 0 of several processes came to what one process comes to."""
    for one, other in zip(alone.results, several.results, strict=True):
        np.testing.assert_allclose(other.losses, one.losses, rtol=1e-5)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
    assert several.state.step == alone.state.step == len(case.knobs)
    assert several.state.frozen_steps == alone.state.frozen_steps
    for part in ("weights", "ema"):
        held, expected = getattr(several.state, part) or {}, getattr(alone.state, part) or {}
        assert held.keys() == expected.keys()
        for key in held:
            np.testing.assert_allclose(held[key], expected[key], rtol=1e-4, atol=1e-6, err_msg=key)
