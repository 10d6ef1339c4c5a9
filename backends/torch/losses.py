"""The training losses by name: per-sample values of logits and soft targets. `backends.mlx.losses` mirrors them.

Label smoothing and mixing are already in the targets; the options' defaults stand in `config.schema`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from backends.contract import LINEAR_LOSSES, LossSpec

PerSample = Callable[[Tensor, Tensor], Tensor]

_ITERATIONS = 5  # of the bi-tempered normalisation, as in the paper
_TINY = 1e-30  # keeps powers and logarithms, and their slopes, finite at zero


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of `[N, C]` logits against `[N, C]` target distributions, `[N]`."""
    return F.cross_entropy(logits, targets, reduction="none")


def focal(logits: Tensor, targets: Tensor, gamma: float, alpha: float) -> Tensor:
    """`alpha * sum_c t_c * (1 - p_c)**gamma * -log(p_c)` over the softmax, `[N]` (Lin et al. 2017, its softmax form).

    `alpha` is one factor for all classes; factors for each are the class weights.
    """
    log_p = F.log_softmax(logits, dim=-1)
    missing = (-torch.expm1(log_p)).clamp(min=_TINY)
    return -alpha * (targets * missing**gamma * log_p).sum(-1)


def poly1(logits: Tensor, targets: Tensor, epsilon: float) -> Tensor:
    """Cross entropy plus `epsilon * sum_c t_c * (1 - p_c)`, `[N]` (Leng et al. 2022), as timm's `PolyCrossEntropy`."""
    log_p = F.log_softmax(logits, dim=-1)
    return -(targets * (log_p + epsilon * torch.expm1(log_p))).sum(-1)


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of each class's sigmoid, its mean over the classes `[N]`, as timm's `BinaryCrossEntropy`."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)


def asymmetric(logits: Tensor, targets: Tensor, gamma_neg: float, gamma_pos: float, clip: float) -> Tensor:
    """Asymmetric loss of each class's sigmoid, summed over the classes, `[N]` (Ridnik et al. 2021).

    As timm's `AsymmetricLossMultiLabel`, but for its floor of 1e-8 under the probabilities, which takes the gradient
    from the samples that are most wrong.
    """
    p = torch.sigmoid(logits)
    if clip > 0:
        absent, log_absent = (p - clip).clamp(min=0), torch.log((torch.sigmoid(-logits) + clip).clamp(max=1))
    else:
        absent, log_absent = p, F.logsigmoid(-logits)
    negatives = 1 - targets
    missing = (targets * torch.sigmoid(-logits) + negatives * absent).clamp(min=_TINY)
    focus = missing ** (gamma_pos * targets + gamma_neg * negatives)
    return -(focus * (targets * F.logsigmoid(logits) + negatives * log_absent)).sum(-1)


def bi_tempered(logits: Tensor, targets: Tensor, t1: float, t2: float) -> Tensor:
    """The bi-tempered logistic loss, `[N]` (Amid et al. 2019): bounded for `t1` < 1, heavy-tailed for `t2` > 1.

    It is 0 where the probabilities are the targets; `t1 = t2 = 1` is the cross entropy less the targets' entropy.
    """
    log_p, power = tempered_log_softmax(logits, t2), 2 - t1
    fit = targets * (_log_t(targets.clamp(min=_TINY).log(), t1) - _log_t(log_p, t1))
    return (fit - (targets**power - torch.exp(power * log_p)) / power).sum(-1)


def tempered_log_softmax(logits: Tensor, t2: float) -> Tensor:
    """Logarithms of the tempered softmax (1 <= `t2`) of `[N, C]`, normalised by five fixed-point iterations.

    The normaliser's slope is that of the exact one (its escort probabilities), as in the paper's own gradient.
    """
    if t2 == 1:
        return F.log_softmax(logits, dim=-1)
    fixed = logits.detach()
    constant = _normaliser(fixed, t2)
    escort = torch.softmax(t2 * _log_exp_t(fixed - constant, t2), dim=-1)
    return _log_exp_t(logits - constant - (escort * (logits - fixed)).sum(-1, keepdim=True), t2)


def _normaliser(logits: Tensor, t2: float) -> Tensor:
    """`[N, 1]`: what to take from the logits so that their tempered exponentials sum to one (Algorithm 1)."""
    most = logits.amax(-1, keepdim=True)
    shifted = scaled = logits - most
    for _ in range(_ITERATIONS):
        log_sum = torch.logsumexp(_log_exp_t(scaled, t2), dim=-1, keepdim=True)
        scaled = shifted * torch.exp((1 - t2) * log_sum)
    log_sum = torch.logsumexp(_log_exp_t(scaled, t2), dim=-1, keepdim=True)
    return most - _log_t(-log_sum, t2)


def _log_t(log_x: Tensor, t: float) -> Tensor:
    """The tempered logarithm of x, given log(x)."""
    return log_x if t == 1 else torch.expm1((1 - t) * log_x) / (1 - t)


def _log_exp_t(x: Tensor, t: float) -> Tensor:
    """The logarithm of the tempered exponential of x <= 0, for t > 1."""
    return torch.log1p((1 - t) * x) / (1 - t)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "bi_tempered": bi_tempered,
    "bce": bce,
    "poly1": poly1,
    "asymmetric": asymmetric,
}


def make(spec: LossSpec) -> PerSample:
    """The loss of `spec`, of logits and targets `[N, C]`, as float32 `[N]`; raises `ConfigError` as `LossSpec.of`."""
    loss, weights = spec.of(LOSSES, "torch"), spec.class_weights
    linear = spec.name in LINEAR_LOSSES

    def per_sample(logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.float()
        if not weights:
            return loss(logits, targets)
        per_class = _on(weights, logits.device)
        return loss(logits, targets * per_class) if linear else loss(logits, targets) * (targets @ per_class)

    return per_sample


@functools.cache
def _on(weights: tuple[float, ...], device: torch.device) -> Tensor:
    # Sent once: a copy at each step would wait for the device.
    return torch.tensor(weights, dtype=torch.float32, device=device)
