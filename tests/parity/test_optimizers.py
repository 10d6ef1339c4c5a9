"""Both engines against plain loops on timm and torch.optim: each optimizer, each limit of the gradients, rates of
layers, a frozen start, micro-batches. 20 steps, losses within 1e-5."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import timm.optim
import timm.optim.muon
import torch
from timm.utils import adaptive_clip_grad

from backends.contract import Batch, MemorySpec, OptimSpec, SessionConfig, StepHyperparams, Weights
from backends.mlx import rules as mlx_rules
from backends.mlx import session as mlx_session
from backends.torch import model as torch_model
from backends.torch import rules as torch_rules
from backends.torch import session as torch_session
from config.sections.train import Optim
from models.registry import ModelSpec
from tests import tiny
from tests.parity import harness
from training.policy import optimizer

STEPS, N = 20, 8
LOSS = 1e-5
ENGINES = {"mlx": mlx_session, "torch": torch_session}
CONVNEXT = tiny.spec("convnext")
# At 32 pixels the last stage has one pixel, and BatchNorm the variance of four numbers: torch is 1e-4 from its float64.
_RESNET = tiny.spec("resnet", image_size=64)
# ReLU under BatchNorm diverges between any two correct implementations.
RESNET = replace(_RESNET, args={**_RESNET.args, "act_layer": "silu"})


@dataclass(frozen=True)
class Case:
    """What is switched on; `peak` is the learning rate, `frozen` the number of first steps that train the head."""

    optim: dict[str, Any] = field(default_factory=dict)
    peak: float = 1e-3
    frozen: int = 0
    memory: MemorySpec = field(default_factory=MemorySpec)
    model: ModelSpec = CONVNEXT


CASES = {
    "adamw": Case(),
    "sgd": Case({"name": "sgd"}, peak=1e-2),
    "lion": Case({"name": "lion"}, peak=2e-4),
    "muon": Case({"name": "muon"}),
    "muon, plain momentum": Case({"name": "muon", "nesterov": False, "clip_norm": 0.0}),
    "value": Case({"clip_norm": 0.0, "clip_value": 0.01}),
    "adaptive": Case({"clip_norm": 0.0, "clip_factor": 0.01}),
    "all limits": Case({"clip_norm": 0.1, "clip_value": 0.01, "clip_factor": 0.02}),
    "layers": Case({"layer_decay": 0.7, "head_lr_mult": 3.0}),
    "frozen": Case(frozen=6),
    "frozen, muon": Case({"name": "muon"}, frozen=6),
    "frozen, batchnorm": Case(frozen=6, model=RESNET),
    "micro-batches": Case(memory=MemorySpec(micro_batch=2)),
    "micro-batches, batchnorm": Case(memory=MemorySpec(micro_batch=4), model=RESNET),
}


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(torch_session.DEVICE_VARIABLE, "cpu")


@functools.cache
def weights_of(arch: str) -> Weights:
    return harness.weights(CONVNEXT if arch == CONVNEXT.arch else RESNET)


def batch(model: ModelSpec, step: int) -> Batch:
    weights = np.ones(N, np.float32)
    weights[-1] = step % 2
    return Batch(harness.images(model, N, seed=step % 5), harness.soft_targets(model, N, seed=step % 5), weights)


def knobs(case: Case, step: int) -> StepHyperparams:
    share = (step + 1) / 4 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / (STEPS - 4)))
    return StepHyperparams(case.peak * share, 0.05, 0.9, Optim(**case.optim).clip_norm, step < case.frozen)


def session_losses(engine: str, case: Case) -> np.ndarray:
    """float64 `[STEPS]`: the weighted mean losses."""
    weights = weights_of(case.model.arch)
    spec = optimizer.spec(Optim(**case.optim), True, case.model, weights)
    session = ENGINES[engine].open(case.model, weights, SessionConfig(optim=spec, compile=False, memory=case.memory))
    losses = []
    for i in range(STEPS):
        data = batch(case.model, i)
        result = session.read(session.train_step(data, None, knobs(case, i)))
        assert result.finite
        losses.append(np.average(result.losses.astype(np.float64), weights=data.weights))
    return np.array(losses)


def reference_losses(case: Case) -> np.ndarray:
    """The same from a plain loop."""
    weights, settings = weights_of(case.model.arch), Optim(**case.optim)
    model = torch_model.build(case.model)
    torch_model.load_canonical(model, weights)
    spec = optimizer.spec(settings, False, case.model, weights)
    parameters = dict(model.named_parameters())
    optimizers = reference_optimizers(settings, spec, parameters)
    losses = []
    for i in range(STEPS):
        data, now = batch(case.model, i), knobs(case, i)
        set_frozen(model, spec, now.frozen)
        for one in optimizers:
            one.zero_grad()
        size, pixels = case.memory.micro_batch or N, harness.normalised(case.model, data.images)
        total = 0.0
        for start in range(0, N, size):
            part = slice(start, start + size)
            logits = model(torch.from_numpy(pixels[part]).permute(0, 3, 1, 2))
            each = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.targets[part]), reduction="none")
            loss = (each * torch.from_numpy(data.weights[part])).sum() / float(data.weights.sum())
            loss.backward()
            total += loss.item()
        limit(settings, spec, parameters)
        for one in optimizers:
            for group in one.param_groups:
                group["lr"] = now.lr * group["factor"]
            one.step()
        losses.append(total)
    return np.array(losses)


def reference_optimizers(
    settings: Optim, spec: OptimSpec, parameters: dict[str, torch.nn.Parameter]
) -> list[torch.optim.Optimizer]:
    def rows(names: list[str]) -> list[dict[str, Any]]:
        pairs = {n: spec.multipliers[n] for n in names}
        return [{"params": [parameters[n]], "factor": lr, "weight_decay": 0.05 * wd} for n, (lr, wd) in pairs.items()]

    everything = list(parameters)
    if spec.name == "adamw":
        return [torch.optim.AdamW(rows(everything), betas=spec.betas, eps=spec.eps)]
    if spec.name == "sgd":
        return [torch.optim.SGD(rows(everything), momentum=spec.momentum, nesterov=spec.nesterov)]
    if spec.name == "lion":
        return [timm.optim.Lion(rows(everything), betas=spec.betas)]
    matrices = [n for n in everything if n in spec.matrices]
    rest = [n for n in everything if n not in spec.matrices]
    muon = timm.optim.Muon(
        [{**row, "use_muon": True} for row in rows(matrices)],
        momentum=spec.momentum,
        nesterov=spec.nesterov,
        ns_coefficients="original",
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, torch.optim.AdamW(rows(rest), betas=spec.betas, eps=spec.eps)]


def set_frozen(model: torch.nn.Module, spec: OptimSpec, frozen: bool) -> None:
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or name in spec.head)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train(not frozen)


def limit(settings: Optim, spec: OptimSpec, parameters: dict[str, torch.nn.Parameter]) -> None:
    if settings.clip_factor:
        adaptive_clip_grad([p for n, p in parameters.items() if n not in spec.head], settings.clip_factor)
    if settings.clip_value:
        torch.nn.utils.clip_grad_value_(parameters.values(), settings.clip_value)
    if settings.clip_norm:
        torch.nn.utils.clip_grad_norm_(parameters.values(), settings.clip_norm)


@pytest.fixture
def _timms_muon_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm iterates in bfloat16 always; our engines do where the network computes in it."""
    iterate = timm.optim.muon.zeropower_via_newtonschulz
    wide: Callable[..., torch.Tensor] = functools.partial(iterate, dtype=torch.float32)
    monkeypatch.setattr(timm.optim.muon, "zeropower_via_newtonschulz", wide)


@pytest.mark.usefixtures("_timms_muon_in_fp32")
@pytest.mark.parametrize("name", CASES)
def test_both_engines_train_as_the_reference_does(name: str) -> None:
    case = CASES[name]
    want = reference_losses(case)
    for engine in ENGINES:
        gap = np.abs(session_losses(engine, case) / want - 1).max()
        assert gap <= LOSS, f"{engine}: {gap:.1e}"


def test_the_cases_differ_from_each_other() -> None:
    """A technique that changed nothing would be on par with anything."""
    plain = session_losses("torch", CASES["adamw"])
    for name in ("value", "adaptive", "all limits", "layers", "frozen"):
        assert np.abs(session_losses("torch", CASES[name]) / plain - 1).max() > 1e-3, name


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (16, 16), (3, 40)])
@pytest.mark.parametrize("kind", ["full", "rank one", "tiny", "zero"])
def test_orthogonalisation_is_timms(shape: tuple[int, int], kind: str) -> None:
    """Over ten matrices, as near to timm's in float64 as timm's own in the same dtype is, within twice."""
    errors: dict[tuple[str, str], list[float]] = {}
    for seed in range(10):
        full = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        values = {"full": full, "rank one": full[:, :1] @ full[:1], "tiny": 1e-9 * full, "zero": 0 * full}[kind]
        tensor = torch.from_numpy(values)
        timms = functools.partial(timm.optim.muon.zeropower_via_newtonschulz, tensor, 5, [(3.4445, -4.7750, 2.0315)])
        exact = timms(dtype=torch.float64).numpy()
        for dtype in ("float32", "bfloat16"):
            found = {
                "timm": timms(dtype=getattr(torch, dtype)).float().numpy(),
                "torch": torch_rules.orthogonal(tensor, getattr(torch, dtype)).numpy(),
                "mlx": np.array(mlx_rules.orthogonal(mx.array(values), getattr(mx, dtype))),
            }
            for name, array in found.items():
                errors.setdefault((dtype, name), []).append(float(np.linalg.norm(array - exact)))
    for dtype in ("float32", "bfloat16"):
        for name in ("torch", "mlx"):
            assert np.mean(errors[dtype, name]) <= 2 * np.mean(errors[dtype, "timm"]), (dtype, name)


@pytest.mark.parametrize("engine", ENGINES)
def test_muon_in_bf16_is_as_near_to_the_exact_step_as_torchs_own(engine: str) -> None:
    """torch.optim.Muon takes matrices only: it gets the flattened kernels of some layers, and nothing else moves."""
    weights = weights_of(CONVNEXT.arch)
    names = [n for n in weights if n.endswith("mlp.fc1.weight")]
    rest = {n: (0.0, 0.0) for n in weights if n not in names}
    muon = OptimSpec("muon", momentum=0.95, matrices=frozenset(names), multipliers=rest)
    after = {}
    for key, spec in (("muon", muon), ("plain", OptimSpec("sgd", momentum=0.0, nesterov=False))):
        session = ENGINES[engine].open(CONVNEXT, weights, SessionConfig(optim=spec, precision="bf16", compile=False))
        session.read(session.train_step(batch(CONVNEXT, 1), None, StepHyperparams(1e-2, 0.0, 0.0, 0.0)))
        after[key] = session.state().weights
    parameters = {
        n: torch.nn.Parameter(torch.from_numpy(weights[n].reshape(len(weights[n]), -1).copy())) for n in names
    }
    for name, parameter in parameters.items():
        parameter.grad = torch.from_numpy(weights[name] - after["plain"][name]).reshape(parameter.shape)
    torch.optim.Muon(parameters.values(), 1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
    ours, theirs = 0.0, 0.0
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        turned = timm.optim.muon.zeropower_via_newtonschulz(
            parameter.grad, 5, [(3.4445, -4.7750, 2.0315)], dtype=torch.float64
        )
        start = weights[name].reshape(parameter.shape)
        exact = start - 1e-2 * 0.2 * math.sqrt(max(start.shape)) * turned.numpy()
        ours += np.sum((after["muon"][name].reshape(start.shape) - exact) ** 2)
        theirs += np.sum((parameter.detach().numpy() - exact) ** 2)
    assert math.sqrt(ours) <= 2 * math.sqrt(theirs)
