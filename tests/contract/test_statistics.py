"""BatchNorm's statistics for averaged weights: recalibrated as torch's own averaging does, on both engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backends.contract import OptimSpec, is_buffer
from tests import tiny
from tests.contract.cases import CLASSES, KNOBS, assert_same, batch, session, step

BATCHES = [batch(seed).images for seed in (3, 4, 5)]


def of_torch(weights: dict[str, np.ndarray], batches: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The statistics that `torch.optim.swa_utils.update_bn` leaves in timm's model, in float64."""
    import timm
    import torch

    row = tiny.TINY["resnet"]
    prep = tiny.spec("resnet", num_classes=CLASSES).preprocessing
    model = timm.create_model(row.arch, num_classes=CLASSES, **row.args)
    model.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()}, strict=False)
    model.double()
    mean, std = torch.tensor(prep.mean), torch.tensor(prep.std)
    inputs = [((torch.from_numpy(b).double() / 255 - mean) / std).permute(0, 3, 1, 2) for b in batches]
    torch.optim.swa_utils.update_bn(inputs, model)
    return {n: t.numpy() for n, t in model.state_dict().items() if is_buffer(n)}


@pytest.mark.parametrize("framework", ["torch", "mlx"])
def test_statistics_are_those_of_torchs_update_bn(framework: str) -> None:
    dropping = {"drop_rate": 0.5, "drop_path_rate": 0.5}
    one = session(framework, family="resnet", **dropping)
    step(one, batch())
    before = one.state()
    one.recalibrate(iter(BATCHES))
    after = one.state()
    expected = of_torch(before.weights, BATCHES)
    assert expected
    for name, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(after.weights[name] / scale, value / scale, atol=2e-5, err_msg=name)
    for name, value in before.weights.items():
        if not is_buffer(name):
            np.testing.assert_array_equal(after.weights[name], value, err_msg=name)


@pytest.mark.parametrize("framework", ["torch", "mlx"])
def test_the_next_update_moves_them_as_ever(framework: str) -> None:
    one, other = session(framework, family="resnet"), session(framework, family="resnet")
    one.recalibrate(iter(BATCHES))
    other.load(one.state())
    for each in (one, other):
        step(each, batch(1), knobs=KNOBS)
    assert_same(one.state(), other.state())


def test_a_network_without_batch_norm_takes_no_batch(engine: str) -> None:
    def forbidden() -> Any:
        raise AssertionError("a batch was asked for")
        yield

    one = session(engine)
    before = one.state()
    one.recalibrate(forbidden())
    assert_same(one.state(), before)


@pytest.mark.parametrize("framework", ["torch", "mlx"])
def test_fixed_statistics_are_used_in_training_and_stay(framework: str) -> None:
    from scipy.special import log_softmax

    one = session(framework, OptimSpec(fixed_statistics=True), family="resnet")
    before, data = one.state().weights, batch()
    expected = -(data.targets * log_softmax(one.logits(data.images), axis=1)).sum(axis=1)
    np.testing.assert_allclose(step(one, data).losses, expected, rtol=1e-5)
    one.recalibrate(iter(BATCHES))
    after = one.state().weights
    for name in filter(is_buffer, before):
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert not np.array_equal(after["fc.weight"], before["fc.weight"])
