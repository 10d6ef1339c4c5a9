"""The torch and NumPy engines against plain loops on timm, torch.optim and torch.nn. (MLX: `tests/parity`.)"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch

from backends import contract, load
from backends.contract import Batch, MixPlan, OptimSpec, SessionConfig, StepHyperparams
from config.errors import BackendUnavailable, ConfigError, WeightsError
from models import registry
from models.weights import loading
from tests import tiny

N, CLASSES, SIZE = 8, 5, 32


def batches(count: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    out = []
    for _ in range(count):
        targets = rng.dirichlet(np.ones(CLASSES), N).astype(np.float32)
        images = rng.integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)
        out.append(Batch(images, targets, np.array([1, 1, 1, 1, 1, 1, 0.5, 0], np.float32)))
    return out


def optimizer_of(kind: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(groups, betas=(0.8, 0.99), eps=1e-6, fused=False, foreach=False)
    return torch.optim.SGD(groups, momentum=0.9, nesterov=kind == "nesterov", fused=False, foreach=False)


def spec_of(kind: str, **more: Any) -> OptimSpec:
    if kind == "adamw":
        return OptimSpec(betas=(0.8, 0.99), eps=1e-6, **more)
    return OptimSpec(name="sgd", momentum=0.9, nesterov=kind == "nesterov", **more)


def knobs(i: int) -> StepHyperparams:
    return StepHyperparams(lr=2e-3 * (1 + i % 5), weight_decay=0.1, ema_decay=0.75, clip_norm=0.5)


@pytest.mark.parametrize("kind", ["adamw", "sgd", "nesterov"])
@pytest.mark.parametrize("family", ["convnext", "resnet"])
def test_torch_engine_is_timm_and_torch_optim(kind: str, family: str) -> None:
    """20 steps; group rates, decays, clipping, weighted mean, running statistics and EMA by torch's own means."""
    torch.manual_seed(0)
    smooth = {"act_layer": "silu"} if family == "resnet" else {}  # ReLU under BatchNorm diverges chaotically
    spec = tiny.spec(family, num_classes=CLASSES)
    spec = replace(spec, args={**spec.args, **smooth})
    plain = timm.create_model(spec.arch, num_classes=CLASSES, **tiny.TINY[family].args, **smooth)
    names = [n for n, p in plain.named_parameters() if p.ndim <= 1]
    multipliers = dict.fromkeys(names, (0.5, 0.0))
    start = {n: t.numpy().copy() for n, t in plain.state_dict().items() if not n.endswith("num_batches_tracked")}
    session = load("torch").open(spec, start, SessionConfig(optim=spec_of(kind, ema=True, multipliers=multipliers)))

    matrices = [p for p in plain.parameters() if p.ndim > 1]
    rest = [p for p in plain.parameters() if p.ndim <= 1]
    optimizer = optimizer_of(kind, [{"params": matrices, "lr": 0.0}, {"params": rest, "lr": 0.0, "weight_decay": 0.0}])
    average = torch.optim.swa_utils.AveragedModel(
        plain, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.75), use_buffers=True
    )
    average.update_parameters(plain)  # its first call copies
    plain.train()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.preprocessing.mean, spec.preprocessing.std))
    for i, data in enumerate(batches(20)):
        result = session.read(session.train_step(data, None, knobs(i)))
        x = (torch.from_numpy(data.images).permute(0, 3, 1, 2) / 255 - mean) / std
        losses = torch.nn.functional.cross_entropy(plain(x), torch.from_numpy(data.targets), reduction="none")
        share = torch.from_numpy(data.weights)
        optimizer.zero_grad()
        ((share * losses).sum() / share.sum()).backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        for group, rate in zip(optimizer.param_groups, (1.0, 0.5), strict=True):
            group["lr"] = knobs(i).lr * rate
        optimizer.param_groups[0]["weight_decay"] = 0.1
        optimizer.step()
        average.update_parameters(plain)
        np.testing.assert_allclose(result.losses, losses.detach().numpy(), rtol=2e-5, err_msg=str(i))
        assert result.grad_norm == pytest.approx(norm.item(), rel=1e-4)

    state = session.state()
    assert state.ema is not None
    for held, theirs in ((state.weights, plain.state_dict()), (state.ema, average.module.state_dict())):
        for name, value in held.items():
            np.testing.assert_allclose(value, theirs[name].numpy(), rtol=1e-3, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["adamw", "sgd", "nesterov"])
def test_numpy_engine_is_torch_on_a_linear_layer(kind: str) -> None:
    spec = tiny.spec("convnext", num_classes=CLASSES)
    session = load("numpy").open(
        spec, None, SessionConfig(optim=spec_of(kind, multipliers={"head.bias": (0.5, 0.0)}), seed=1)
    )
    start = session.state().weights
    layer = torch.nn.Linear(8 * 8 * 3, CLASSES)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(start["head.weight"]))
        layer.bias.zero_()
    optimizer = optimizer_of(
        kind, [{"params": [layer.weight], "lr": 0.0}, {"params": [layer.bias], "lr": 0.0, "weight_decay": 0.0}]
    )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.preprocessing.mean, spec.preprocessing.std))
    for i, data in enumerate(batches(20)):
        result = session.read(session.train_step(data, None, knobs(i)))
        x = (torch.from_numpy(data.images).permute(0, 3, 1, 2) / 255 - mean) / std
        cells = torch.nn.functional.adaptive_avg_pool2d(x, 8).permute(0, 2, 3, 1).flatten(1)
        losses = torch.nn.functional.cross_entropy(layer(cells), torch.from_numpy(data.targets), reduction="none")
        share = torch.from_numpy(data.weights)
        optimizer.zero_grad()
        ((share * losses).sum() / share.sum()).backward()
        norm = torch.nn.utils.clip_grad_norm_(layer.parameters(), 0.5)
        for group, rate in zip(optimizer.param_groups, (1.0, 0.5), strict=True):
            group["lr"] = knobs(i).lr * rate
        optimizer.param_groups[0]["weight_decay"] = 0.1
        optimizer.step()
        np.testing.assert_allclose(result.losses, losses.detach().numpy(), rtol=1e-4)
        assert result.grad_norm == pytest.approx(norm.item(), rel=1e-5)
    held = session.state().weights
    np.testing.assert_allclose(held["head.weight"], layer.weight.detach().numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(held["head.bias"], layer.bias.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_torch_generators_are_left_as_they_were() -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    session = load("torch").open(tiny.spec("convnext", drop_rate=0.5), None)
    session.read(session.train_step(batches(1)[0], None, knobs(0)))
    session.logits(batches(1)[0].images)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("arch", ["resnet18", "convnext_atto", "efficientnet_b0"])
def test_gem_pooling_starts_as_the_mean_for_power_one(arch: str) -> None:
    """GeM of power 1 on positive features is average pooling; its power is learnable and part of the weights."""
    from backends.torch import model

    spec = registry.get(arch, num_classes=3, image_size=64, global_pool="gem")
    one = model.build(spec).eval()
    place = next(n for n in dict(one.named_modules()) if n.endswith("global_pool"))
    pool = one.get_submodule(place)
    assert f"{place}.p" in model.canonical_tensors(one)
    features = torch.rand(2, 7, 5, 5) + 0.1
    with torch.no_grad():
        expected = (features.double() ** 3).mean((2, 3)) ** (1 / 3)
        torch.testing.assert_close(pool(features).flatten(1).double(), expected, rtol=1e-5, atol=1e-6)
        pool.p.fill_(1.0)
        torch.testing.assert_close(pool(features).flatten(1), features.mean((2, 3)))
        assert one(torch.rand(2, 3, 64, 64)).shape == (2, 3)


def test_gem_is_refused_where_there_is_no_pooling() -> None:
    from backends.torch import model

    with pytest.raises(ConfigError, match="gem"):
        model.build(tiny.spec("vit", global_pool="gem"))


@pytest.mark.parametrize("family", tiny.TINY)
def test_every_tiny_family_trains_in_torch_at_its_size(family: str) -> None:
    session = load("torch").open(tiny.spec(family, drop_path_rate=0.1), None, SessionConfig(optim=OptimSpec(ema=True)))
    result = session.read(session.train_step(batches(1)[0], None, knobs(0)))
    assert result.finite
    assert session.logits(batches(1)[0].images, "ema").shape == (N, CLASSES)


@pytest.mark.parametrize("channels", [0, 2])
def test_other_numbers_of_channels_are_refused(channels: int) -> None:
    with pytest.raises(ConfigError, match="in_chans"):
        load("torch").open(tiny.spec("convnext", in_chans=channels), None)


def test_one_channel_sees_grey() -> None:
    """A grey photograph gives a one-channel model the same logits as the three-channel model it was made from."""
    three = load("torch").open(tiny.spec("convnext"), None)
    full = tiny.spec("convnext")
    flat = replace(full, preprocessing=replace(full.preprocessing, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)))
    one_channel = replace(flat, in_chans=1)
    fitted, notes = loading.fit(three.state().weights, one_channel)
    assert "1 input channels" in notes[0]
    grey = np.repeat(np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 1), dtype=np.uint8), 3, axis=3)
    a = load("torch").open(flat, three.state().weights).logits(grey)
    b = load("torch").open(one_channel, fitted).logits(grey)
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_device_is_chosen_by_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_TORCH_DEVICE", "cpu")
    session = load("torch").open(tiny.spec("convnext"), None)
    assert session.describe()["device"].startswith("cpu")
    monkeypatch.setenv("TANDEM_TORCH_DEVICE", "cuda:99")
    with pytest.raises(BackendUnavailable, match="cuda:99"):
        load("torch").open(tiny.spec("convnext"), None)


@pytest.mark.parametrize("kind", ["adamw", "nesterov", "lion", "muon"])
def test_the_guard_skips_on_the_device(kind: str) -> None:
    """What CUDA relies on, held where it can be run: the flag makes each optimizer leave everything alone."""
    from backends.torch import optim

    parameter = torch.nn.Parameter(torch.ones(3, 2))
    spec = OptimSpec(name=kind, matrices=frozenset({"w"})) if kind in ("lion", "muon") else spec_of(kind)  # type: ignore[arg-type]
    (one,) = optim.make({"w": parameter}, spec, torch.float32)
    for gradient, finite in ((0.5, True), (torch.nan, False), (torch.inf, False)):
        before = [parameter.detach().clone(), *(t.clone() for t in one.state[parameter].values())]
        parameter.grad = torch.full((3, 2), gradient)
        optim.update([one], 0.1, 0.1, torch.tensor(finite))
        after = [parameter.detach(), *one.state[parameter].values()]
        assert all(torch.equal(a, b) != finite for a, b in zip(before, after, strict=True))


def test_a_wrong_state_says_what_is_wrong() -> None:
    session = load("torch").open(tiny.spec("convnext"), None)
    state = session.state()
    wrong = {n: w for n, w in state.weights.items() if n != "head.fc.bias"}
    wrong["stem.0.weight"] = np.zeros((1, 2, 3, 3), np.float32)
    wrong["tail.weight"] = np.zeros(2, np.float32)
    with pytest.raises(WeightsError) as caught:
        session.load(contract.TrainState(wrong, None, state.optimizer))
    for word in ("missing: head.fc.bias", "unexpected: tail.weight", "stem.0.weight (1, 2, 3, 3) instead of"):
        assert word in str(caught.value)


@pytest.mark.filterwarnings("error")
def test_arrays_of_any_stride_and_read_only_ones_are_taken() -> None:
    ones = np.ones(N, np.float32)
    plan = MixPlan(np.arange(N, dtype=np.int32)[::-1], ones, np.zeros((N, 4), np.int32), ones)
    session = load("torch").open(tiny.spec("convnext"), None)
    data = batches(1)[0]
    data.images.flags.writeable = False
    assert session.read(session.train_step(data, plan, knobs(0))).finite
