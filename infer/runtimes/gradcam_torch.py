"""torch's side of Grad-CAM: the input of one module of timm's model, and the logits' gradient for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backends.contract import Weights
from backends.torch import model as models
from backends.torch.memory import memory_errors
from backends.torch.session import best_device
from backends.torch.step import Input
from config.errors import ConfigError
from infer.explain.gradcam import Activations, GradFn, grid
from models.families import FAMILIES
from models.registry import ModelSpec


def open(spec: ModelSpec, weights: Weights, module_name: str) -> GradFn:
    """The function that gives features and gradients; -1 in the dotted `module_name` is the last of a list."""
    device = best_device()
    network = models.build(spec)
    models.load_canonical(network, weights, f"the weights for {spec.name}")
    network.eval().requires_grad_(False).to(device)
    prep = spec.preprocessing
    mean, std = (torch.tensor(v, dtype=torch.float32, device=device) for v in (prep.mean, prep.std))
    prepare, module = Input(mean, std, spec.in_chans, "fp32"), _find(network, module_name, spec.name)

    @memory_errors()
    def gradients(images: NDArray[np.uint8], classes: NDArray[np.int64]) -> Activations:
        activations: list[Tensor] = []

        def take(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            activations.append(arguments[0].detach().requires_grad_())
            return (activations[0], *arguments[1:])

        handle = module.register_forward_pre_hook(take)
        try:
            logits = network(prepare(torch.from_numpy(np.ascontiguousarray(images)).to(device)))
        finally:
            handle.remove()
        score = logits.gather(1, torch.from_numpy(classes).to(device)[:, None]).sum()
        gradient = torch.autograd.grad(score, activations[0])[0]
        return Activations(*(_canonical(t.float(), spec) for t in (activations[0].detach(), gradient)))

    return gradients


def _find(network: nn.Module, module_name: str, model_name: str) -> nn.Module:
    """The module of that name; `ConfigError` where the model has none."""
    module: Any = network
    for segment in module_name.split("."):
        module = module[-1] if segment == "-1" else getattr(module, segment, None)
        if module is None:
            raise ConfigError(f"model {model_name}: has no {module_name}, where Grad-CAM looks for the features")
    return module


def _canonical(tensor: Tensor, spec: ModelSpec) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.cpu().numpy()
    if array.ndim == 3:
        return grid(array, spec)
    return array if FAMILIES[spec.family].gradcam_channels_last else array.transpose(0, 2, 3, 1)
