"""fp16 with a scaled loss and tf32: torch's own ways, and a refusal where they are not to be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from backends.torch.precision import LossScale
from config import load
from config.errors import ConfigError
from tests.contract.cases import assert_same, batch, session, step
from training.run import train_run


def test_the_scale_moves_as_torchs_grad_scaler() -> None:
    ours, weight = LossScale(torch.device("cpu")), torch.nn.Parameter(torch.ones(1))
    theirs = torch.amp.GradScaler("cpu", growth_interval=2000)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for finite in [False, True, False, *[True] * 2005, False]:
        theirs.scale(weight.sum() * (1.0 if finite else float("inf"))).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.update(torch.tensor(finite))
        assert ours.value.item() == theirs.get_scale()


def test_fp16_updates_are_those_of_fp32_up_to_its_rounding() -> None:
    exact, half = session("torch", precision="fp32"), session("torch", precision="fp16")
    before = exact.state().weights
    half.load(exact.state())
    one, other = step(exact, batch()), step(half, batch())
    assert other.finite
    np.testing.assert_allclose(other.losses, one.losses, rtol=1e-2)
    assert other.grad_norm == pytest.approx(one.grad_norm, rel=2e-2), "the norm is that of the unscaled gradients"
    slopes = [s.state().optimizer for s in (exact, half)]
    flat = [np.concatenate([o[f"exp_avg.{n}"].ravel() for n in before]) for o in slopes]
    assert np.linalg.norm(flat[0] - flat[1]) < 0.03 * np.linalg.norm(flat[0])


def test_an_overflow_halves_the_scale_and_changes_nothing_else() -> None:
    one = session("torch", precision="fp16")
    state = one.state()
    state.loss_scale = 2.0**60
    one.load(state)
    told = step(one, batch())
    assert told.finite, "the scale finds its size in the first updates; that is no fault"
    assert np.isfinite(told.losses).all()
    after = one.state()
    assert after.loss_scale == 2.0**59
    assert (after.step, after.calls) == (0, 1)
    for name, value in state.weights.items():
        np.testing.assert_array_equal(after.weights[name], value, err_msg=name)


def test_the_scale_is_part_of_the_state() -> None:
    one, other = session("torch", precision="fp16"), session("torch", precision="fp16")
    state = one.state()
    state.loss_scale, state.scale_age = 128.0, 1998
    one.load(state)
    step(one, batch())
    other.load(one.state())
    for each in (one, other):
        step(each, batch(1))
    assert_same(one.state(), other.state())
    assert (other.state().loss_scale, other.state().scale_age) == (256.0, 0)


def test_what_no_scale_cures_is_told() -> None:
    one = session("torch", precision="fp16")
    state = one.state()
    state.weights["head.fc.weight"][...] = np.inf
    one.load(state)
    assert not step(one, batch()).finite


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
@pytest.mark.parametrize("other", ["mlx", "numpy"])
def test_other_engines_refuse_it_before_they_read_anything(precision: str, other: str, tmp_path: Path) -> None:
    words = ["--data.root", str(tmp_path), "--out", str(tmp_path), "--train.precision", precision]
    with pytest.raises(ConfigError, match=rf"train\.precision {precision}: torch alone"):
        train_run.run_all(other, load.parse(words, prog="test"), lambda: False)


def test_sessions_refuse_what_their_device_lacks() -> None:
    with pytest.raises(ConfigError, match="MLX engine has fp32, tf32, bf16"):
        session("mlx", precision="fp16")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="needs an NVIDIA GPU"):
            session("torch", precision="tf32")
