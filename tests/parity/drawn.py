"""What the parity tests feed both engines: random weights that hide nothing, images and soft targets, from a seed.

The passes that take them are in `passes`, the bounds in `harness`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from backends.contract import Weights, is_buffer
from backends.torch import model as torch_model
from models.registry import ModelSpec


def torch_network(spec: ModelSpec, values: Weights | None = None) -> nn.Module:
    """timm's network of `spec` with `values`; the global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch_model.build(spec)
    if values is not None:
        torch_model.load_canonical(model, values)
    return model


def weights(spec: ModelSpec, seed: int = 0) -> Weights:
    """Random canonical weights that hide nothing: no zeros or ones where timm has them, BatchNorm statistics near the
    activations' own but not equal, logits with a standard deviation of 1."""
    model = torch_network(spec)
    state = torch_model.canonical_tensors(model)
    trained = {name for name, _ in model.named_parameters()}
    drawn = {n: _drawn(n, t, _rng(n, seed)) for n, t in state.items() if n in trained or is_buffer(n)}
    torch_model.copy_into(state, drawn)
    _tame(model)
    pixels = torch.from_numpy(normalised(spec, images(spec, 8))).permute(0, 3, 1, 2)
    _calibrate(model, pixels, seed)
    names = (spec.classifier,) if isinstance(spec.classifier, str) else spec.classifier
    with torch.no_grad():
        logits = model.eval()(pixels)
        spread = float(logits.std())
        if spec.num_classes:
            for key in (f"{n}.{kind}" for n in names for kind in ("weight", "bias")):
                state[key].div_(spread)
        assert float(logits.std(dim=0).mean()) > 0.02 * spread, f"{spec.name}: the logits hardly depend on the image"
    return torch_model.to_arrays(state)


def images(spec: ModelSpec, count: int, seed: int = 0) -> np.ndarray:
    """uint8 `[count, size, size, 3]`: coarse coloured patches with noise, different from each other."""
    rng, size = _rng("images", seed), spec.preprocessing.size
    coarse = rng.uniform(0, 255, (count, 4, 4, 3)).repeat(-(-size // 4), 1).repeat(-(-size // 4), 2)[:, :size, :size]
    noisy = coarse + rng.normal(0, 30, coarse.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def normalised(spec: ModelSpec, pixels: np.ndarray) -> np.ndarray:
    """float32 `[N, H, W, in_chans]` as a model takes it."""
    prep = spec.preprocessing
    scaled = (pixels / 255 - np.array(prep.mean)) / np.array(prep.std)
    return (scaled if spec.in_chans == 3 else scaled.mean(-1, keepdims=True)).astype(np.float32)


def soft_targets(spec: ModelSpec, count: int, seed: int = 0) -> np.ndarray:
    """float32 `[count, C]`, rows that sum to one."""
    classes = max(spec.num_classes, 2)
    picked = np.eye(classes)[_rng("targets", seed).integers(0, classes, count)]
    return (0.9 * picked + 0.1 / classes).astype(np.float32)


def _drawn(name: str, tensor: torch.Tensor, rng: np.random.Generator) -> np.ndarray:
    kind, value = name.rpartition(".")[2], tensor.detach().numpy()
    noise = rng.standard_normal(value.shape)
    if kind == "running_var":
        drawn = rng.uniform(0.5, 1.5, value.shape)
    elif kind == "weight" and value.ndim > 1:
        drawn = noise / math.sqrt(value[0].size)
    elif "gamma" in kind:
        drawn = 0.5 + 0.1 * noise
    else:
        drawn = value + (0.1 if kind.endswith("bias") else 0.2) * noise
    return drawn.astype(np.float32)


def _tame(model: nn.Module) -> None:
    """Random layers of ReLU or SiLU after BatchNorm amplify rounding, a deep network of them by thousands.

    So activations get mostly positive inputs, and the branches of EfficientNet's blocks, which have no activation after
    their sum, are small beside the stream (mobilenetv2_120d, torch from itself: 5e-5 of the logits, so 2e-6).
    """
    with torch.no_grad():
        for norm in _batch_norms(model):
            if not isinstance(getattr(norm, "act", nn.Identity()), nn.Identity):
                norm.bias += 0.5
        for block in (m for m in model.modules() if getattr(m, "has_skip", False)):
            scaled = [m for m in block.modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 1]
            last = (list(_batch_norms(block)) or scaled)[-1]
            last.weight *= 0.3
            last.bias *= 0.3


def _calibrate(model: nn.Module, pixels: torch.Tensor, seed: int) -> None:
    """BatchNorm statistics near those of its real input, then moved off them; layer by layer, on what the calibrated
    layers before it give, so that in a deep network neither the signal nor its dependence on the image dies out."""

    def near_its_input(norm: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        rng = _rng(f"{names[norm]}.calibrated", seed)
        mean, square = given[0].mean((0, 2, 3)), given[0].square().mean((0, 2, 3))
        noise = torch.from_numpy(rng.standard_normal(len(mean)).astype(np.float32))
        norm.running_mean.copy_(mean + 0.1 * square.sqrt() * noise)
        norm.running_var.copy_(square * torch.from_numpy(rng.uniform(0.8, 1.25, len(mean)).astype(np.float32)))

    names = {module: name for name, module in model.named_modules()}
    hooks = [norm.register_forward_pre_hook(near_its_input) for norm in _batch_norms(model)]
    with torch.no_grad():
        model.eval()(pixels)
    for hook in hooks:
        hook.remove()


def _batch_norms(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))


def _rng(name: str, seed: int) -> np.random.Generator:
    key = np.frombuffer(hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=16).digest(), "<u8")
    return np.random.Generator(np.random.Philox(key=key))
