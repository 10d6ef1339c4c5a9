"""timm's model of a spec, and the door between its state and canonical arrays."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backends.contract import Weights
from config.errors import ConfigError
from models import registry
from models.registry import ModelSpec
from models.weights.loading import check, pool_power

_COPY = 2**26  # bytes; torch rounds pinned memory up to a power of two


def build(spec: ModelSpec) -> nn.Module:
    """timm's module of `spec`, drawn from torch's current generator, on the CPU, in training mode.

    Arguments of `spec.args` that differ from the registry's are passed on to timm's entry point, as the tests' tiny
    networks need. Raises `ConfigError` for a pooling that the architecture does not have.
    """
    if spec.family == registry.ZOO:
        raise ConfigError(f"model {spec.name}: mlx-image's models are MLX's alone; train it with train_mlx.py")
    options = registry.timm_args(spec)
    if spec.global_pool == "gem":
        options["global_pool"] = "avg"
    model = timm.create_model(
        spec.arch,
        pretrained=False,
        num_classes=spec.num_classes,
        in_chans=spec.in_chans,
        drop_rate=spec.drop_rate,
        drop_path_rate=spec.drop_path_rate,
        **options,
    )
    return _with_gem(model, spec) if spec.global_pool == "gem" else model


class GeM(nn.Module):
    """Generalised-mean pooling (Radenovic et al. 2018) with a learnable power, around timm's average pooling."""

    def __init__(self, average: nn.Module, power: float = 3.0):
        super().__init__()
        self.average = average
        self.p = nn.Parameter(torch.full((1,), power))

    def forward(self, x: Tensor) -> Tensor:
        """The average's shape and the input's dtype; the powers are taken in fp32."""
        powers = x.float().clamp(min=1e-6).pow(self.p)
        return self.average(powers).pow(1 / self.p).to(x.dtype)


def canonical_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's own parameters and running statistics under their canonical names."""
    tensors = model.state_dict(keep_vars=True).items()
    return {n: local(t) for n, t in tensors if not n.endswith("num_batches_tracked")}


def local(tensor: Tensor) -> Tensor:
    """This process's rows of a tensor that FSDP2 spreads, in the same memory; any other as it is."""
    plain: Tensor = tensor.detach().to_local() if hasattr(tensor, "to_local") else tensor
    return plain


def to_arrays(tensors: dict[str, Tensor]) -> Weights:
    """Copies as contiguous float32 arrays, from a GPU in few large copies into pinned memory and one wait. The arrays
    are views of these copies."""
    arrays: dict[str, NDArray[np.float32]] = {}
    copies: list[tuple[list[tuple[str, Tensor]], Tensor]] = []
    for group in _grouped(tensors):
        flat = torch.cat([tensor.detach().reshape(-1).float() for _, tensor in group])
        copies.append((group, flat.to("cpu", non_blocking=flat.device.type == "cuda")))
    if any(tensor.device.type == "cuda" for tensor in tensors.values()):
        torch.cuda.current_stream(next(iter(tensors.values())).device).synchronize()
    for group, host in copies:
        ends = np.cumsum([tensor.numel() for _, tensor in group])[:-1]
        arrays |= {n: rows.reshape(t.shape) for (n, t), rows in zip(group, np.split(host.numpy(), ends), strict=True)}
    return arrays


def _grouped(tensors: dict[str, Tensor]) -> Iterable[list[tuple[str, Tensor]]]:
    """The tensors in groups of up to `_COPY` bytes, which the device has to hold twice for a moment."""
    group: list[tuple[str, Tensor]] = []
    taken = 0
    for name, tensor in tensors.items():
        size = 4 * tensor.numel()
        if group and taken + size > _COPY:
            yield group
            group, taken = [], 0
        group.append((name, tensor))
        taken += size
    if group:
        yield group


def load_canonical(model: nn.Module, weights: Weights, source: str = "weights") -> None:
    """Copy canonical arrays into the model; `WeightsError`, with nothing changed, when names or shapes differ."""
    tensors = canonical_tensors(model)
    check(weights, {n: tuple(t.shape) for n, t in tensors.items()}, source)
    copy_into(tensors, weights)


@torch.no_grad()
def copy_into(tensors: dict[str, Tensor], arrays: Weights) -> None:
    """Copy the arrays into the tensors of the same names, which have the same shapes."""
    for name, array in arrays.items():
        tensors[name].copy_(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)))


def _with_gem(model: nn.Module, spec: ModelSpec) -> nn.Module:
    path = pool_power(spec).removesuffix(".p")
    if path not in dict(model.named_modules()):
        raise ConfigError(f"model {spec.name}: has no pooling that gem could replace; leave global_pool unset")
    parent = model.get_submodule(path.rpartition(".")[0])
    parent.global_pool = GeM(model.get_submodule(path))
    return model
