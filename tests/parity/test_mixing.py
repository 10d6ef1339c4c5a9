"""The two engines train alike under every kind of mixing, with soft targets and images of unequal weight."""

from __future__ import annotations

import numpy as np
import pytest

from backends.contract import Batch, Session, SessionConfig
from backends.mlx import session as mlx_session
from backends.torch import session as torch_session
from config.sections.data import Mix
from tests import tiny
from tests.parity import harness
from tests.parity.test_training_parity import knobs
from training.policy import mix

STEPS, BATCH, SEED = 20, 8, 3
SPEC = tiny.spec("convnext")
KINDS = {
    "unmixed": Mix(),  # soft targets and unequal weights alone: distillation and pseudo labels
    "mixup": Mix(mixup=0.8),
    "cutmix": Mix(cutmix=1.0),
    "both": Mix(mixup=0.8, cutmix=1.0, prob=0.7),
    "elementwise": Mix(mixup=0.8, cutmix=1.0, prob=0.7, mode="elementwise"),
}


def losses(session: Session, settings: Mix) -> np.ndarray:
    """float32 `[STEPS, BATCH]` of `STEPS` updates on batches that repeat after five; the last two do not mix."""
    rows = []
    for step in range(STEPS):
        plan = mix.plan(settings, BATCH, SPEC.preprocessing.size, SEED, step, epochs_left=STEPS - step)
        weights = mix.weights(plan, np.linspace(0.2, 1, BATCH, dtype=np.float32))
        images, targets = harness.images(SPEC, BATCH, step % 5), harness.soft_targets(SPEC, BATCH, step % 5)
        result = session.read(session.train_step(Batch(images, targets, weights), plan, knobs(step)))
        assert result.finite
        rows.append(result.losses)
    return np.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_the_engines_stay_together(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(torch_session.DEVICE_VARIABLE, "cpu")
    settings, weights = KINDS[kind].model_copy(update={"off_epochs": 2}), harness.weights(SPEC)
    mine, theirs = (engine.open(SPEC, weights, SessionConfig(compile=False)) for engine in (mlx_session, torch_session))
    got, want = losses(mine, settings), losses(theirs, settings)
    assert np.abs(got.mean(axis=1) / want.mean(axis=1) - 1).max() <= 1e-5
    assert np.abs(got / want - 1).max() <= 1e-4, "single images"
    mine.close()
    theirs.close()


def test_mixing_changes_what_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(torch_session.DEVICE_VARIABLE, "cpu")
    weights = harness.weights(SPEC)
    curves = [
        losses(torch_session.open(SPEC, weights, SessionConfig(compile=False)), settings) for settings in KINDS.values()
    ]
    assert all(np.abs(one - curves[0]).max() > 1e-3 for one in curves[1:])
