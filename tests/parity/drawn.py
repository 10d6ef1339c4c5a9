"""What the parity tests feed both engines: random weights that hide nothing, images and soft targets, from a seed.

The passes that take them are in `passes`, the bounds in `harness`.
"""

from __future__ import annotations

import hashlib
import math

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


def _calibrate(model: nn.Module, pixels: torch.Tensor, seed: int) -> None:
    """BatchNorm statistics near those of real activations, else deep networks explode; then moved off them.

    A variance far below the squared mean, as random filters on positive inputs give it, would cost digits on any
    engine (torch from itself: 7e-6 of the logits), so the squared mean is added.
    """
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None
    if norms:
        with torch.no_grad():
            model.train()(pixels)
    for name, norm in norms.items():
        rng, norm.momentum = _rng(f"{name}.calibrated", seed), momenta[name]
        norm.running_var += norm.running_mean**2
        spread = norm.running_var.sqrt() * 0.1
        norm.running_mean += spread * torch.from_numpy(rng.standard_normal(len(spread)).astype(np.float32))
        norm.running_var *= torch.from_numpy(rng.uniform(0.8, 1.25, len(spread)).astype(np.float32))


def _rng(name: str, seed: int) -> np.random.Generator:
    key = np.frombuffer(hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=16).digest(), "<u8")
    return np.random.Generator(np.random.Philox(key=key))
