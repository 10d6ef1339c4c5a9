"""Mixing against timm's own: both are given the same draws, and must make the same images and targets of them.

timm draws from NumPy's global functions: inside `timm.data.mixup` they are replaced by ones that repeat what our
plan drew. timm pairs image i with image B - 1 - i, so our permutation is made the reverse.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import mixup as timms

from backends.contract import MixPlan
from backends.torch.step import mixup
from config import load
from config.errors import ConfigError
from config.sections.data import Mix
from training.policy import mix

BATCH, SIZE, CLASSES = 8, 33, 5  # an odd size: halves of boxes must be rounded alike
PREPARED = np.random.default_rng(0).normal(size=(BATCH, 3, SIZE, SIZE)).astype(np.float32)
LABELS = np.arange(BATCH) % CLASSES


class Recorded:
    """A generator that notes what it draws, and permutes by reversal."""

    def __init__(self, seed: int):
        self._rng = np.random.default_rng(seed)
        self.random_, self.beta_, self.centres = [], [], np.zeros((0, 2), int)

    def random(self, n: int) -> np.ndarray:
        self.random_.append(self._rng.random(n))
        return self.random_[-1]

    def beta(self, a: float, b: float, n: int) -> np.ndarray:
        self.beta_.append(self._rng.beta(a, b, n).astype(np.float32).astype(np.float64))  # as timm rounds them
        return self.beta_[-1]

    def integers(self, low: int, high: int, shape: tuple[int, int]) -> np.ndarray:
        self.centres = self._rng.integers(low, high, shape)
        return self.centres

    def permutation(self, n: int) -> np.ndarray:
        return np.arange(n)[::-1]


class NumPy:
    """NumPy as timm sees it, with `random` replaced."""

    def __init__(self, rand: list[Any], beta: list[Any], randint: list[int]):
        queues: dict[str, Iterator[Any]] = {"rand": iter(rand), "beta": iter(beta), "randint": iter(randint)}
        self.random = SimpleNamespace(**{n: lambda *_, q=q, **__: next(q) for n, q in queues.items()})

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def timms_mixing(settings: Mix, drawn: Recorded, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """timm's images and targets of the recorded draws, handed out in the order in which it asks."""
    prob, switch = drawn.random_
    both, elementwise = len(drawn.beta_) == 2, settings.mode == "elementwise"
    cuts = switch < settings.switch_prob if both else np.full(len(switch), settings.cutmix > 0)
    if elementwise:
        rand, beta = ([switch, prob] if both else [prob]), drawn.beta_[::-1]
        centres = drawn.centres[cuts & (prob < settings.prob)]
    else:
        rand = [prob[0], switch[0]] if both else [prob[0]]
        beta = [drawn.beta_[1 if both and cuts[0] else 0][0]]
        centres = drawn.centres
    monkeypatch.setattr(timms, "np", NumPy(rand, beta, centres.ravel().tolist()))
    theirs = timms.Mixup(
        settings.mixup,
        settings.cutmix,
        prob=settings.prob,
        switch_prob=settings.switch_prob,
        mode="elem" if elementwise else "batch",
        label_smoothing=0.1,
        num_classes=CLASSES,
    )
    images, targets = theirs(torch.from_numpy(PREPARED.copy()), torch.from_numpy(LABELS))
    return images.numpy(), targets.numpy()


def mixed(images: torch.Tensor, targets: torch.Tensor, plan: MixPlan) -> tuple[torch.Tensor, torch.Tensor]:
    partners, *rest = (torch.from_numpy(part) for part in plan)
    return mixup(images, images[partners], targets, targets[partners], rest)


def ours(plan: MixPlan) -> tuple[np.ndarray, np.ndarray]:
    """What the torch engine makes of a plan; the other engines are held to it by the contract and parity tests."""
    plain = timms.mixup_target(torch.from_numpy(LABELS), CLASSES, smoothing=0.1)
    images, targets = mixed(torch.from_numpy(PREPARED), plain, plan)
    return images.numpy(), targets.numpy()


@pytest.mark.parametrize("mode", ["batch", "elementwise"])
@pytest.mark.parametrize(
    "alphas", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}], ids=["mixup", "cutmix", "both"]
)
def test_equal_draws_give_timms_images_and_targets(mode: str, alphas: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Mix(mode=mode, prob=0.7, switch_prob=0.4, **alphas)  # type: ignore[arg-type]
    for seed in range(20):
        drawn = Recorded(seed)
        monkeypatch.setattr(mix, "philox", lambda *_, drawn=drawn: drawn)
        plan = mix.plan(settings, BATCH, SIZE, 0, 0, 5)
        assert plan is not None
        with monkeypatch.context() as inner:
            images, targets = timms_mixing(settings, drawn, inner)
        mine = ours(plan)
        np.testing.assert_allclose(mine[0], images, atol=1e-6)
        np.testing.assert_allclose(mine[1], targets, atol=1e-6)


@pytest.mark.parametrize(("mode", "distinct"), [("batch", 1), ("elementwise", 64)])
def test_a_batch_is_mixed_in_one_way_or_each_image_in_its_own(mode: str, distinct: int) -> None:
    plan = mix.plan(Mix(mixup=0.8, mode=mode), 64, 32, 0, 1, 5)  # type: ignore[arg-type]
    assert plan is not None
    assert len(np.unique(plan.own)) == distinct


@pytest.mark.parametrize("mode", ["batch", "elementwise"])
def test_how_often_and_what_is_mixed_follows_the_settings(mode: str) -> None:
    settings = Mix(mixup=0.8, cutmix=1.0, prob=0.5, switch_prob=0.25, mode=mode)  # type: ignore[arg-type]
    steps = 4000 if mode == "batch" else 125
    plans = [mix.plan(settings, 32, 224, 0, step, 5) for step in range(steps)]
    rows = slice(None) if mode == "elementwise" else slice(1)
    own = np.concatenate([plan.own[rows] for plan in plans if plan])
    blend = np.concatenate([plan.blend[rows] for plan in plans if plan])
    assert len(own) == 4000
    assert (own < 1).mean() == pytest.approx(0.5, abs=0.03)
    assert ((own < 1) & (blend == 1)).mean() / (own < 1).mean() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("mode", ["batch", "elementwise"])
def test_what_is_not_mixed_is_left_exactly_as_it_was(mode: str) -> None:
    plan = mix.plan(Mix(mixup=0.8, cutmix=1.0, prob=0.0, mode=mode), BATCH, SIZE, 0, 3, 5)  # type: ignore[arg-type]
    assert plan is not None
    images, _ = ours(plan)
    np.testing.assert_array_equal(images, PREPARED)
    weights = np.linspace(0.1, 1, BATCH, dtype=np.float32)
    np.testing.assert_array_equal(mix.weights(plan, weights), weights)


@pytest.mark.parametrize("alphas", [{"mixup": 0.8}, {"cutmix": 1.0}], ids=["mixup", "cutmix"])
def test_the_weights_of_a_pair_are_shared_as_its_targets_are(alphas: dict) -> None:
    plan = mix.plan(Mix(mode="elementwise", **alphas), BATCH, SIZE, 0, 3, 5)
    assert plan is not None
    each = np.linspace(0.1, 1, BATCH, dtype=np.float32)
    shared = mixed(torch.from_numpy(PREPARED), torch.from_numpy(each)[:, None], plan)[1]
    np.testing.assert_allclose(mix.weights(plan, each), shared[:, 0].numpy(), rtol=1e-6)
    assert mix.weights(None, each) is each


def test_an_unknown_mode_names_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"mix\.mode: found 'elem' .*batch.*elementwise"):
        load.parse(["--data.root", "x", "--mix.mode", "elem"], prog="test")
