"""Whether compiling the step pays for itself in what is left of a training. The trial that is judged is `compiling`."""

from __future__ import annotations

# What compiling costs: about 20 s, and 0.3 s for each of the network's tensors (docs/engineering/speed_torch.md).
_SECONDS, _SECONDS_EACH = 20.0, 0.3
# The share of an eager step's time that a compiled one saves: 1.41 times as fast over timm's models in training with
# automatic mixed precision on an A100 (Ansel et al. 2024, PyTorch 2), taken with care.
_SAVED = 0.25


def cost(tensors: int) -> float:
    """Seconds that it takes to compile training and evaluation of a network with that many tensors."""
    return _SECONDS + _SECONDS_EACH * tensors


def pays(updates: int, seconds: float, tensors: int) -> bool:
    """Whether `updates` that take `seconds` each when not compiled save more time than compiling costs."""
    return updates * seconds * _SAVED > cost(tensors)
