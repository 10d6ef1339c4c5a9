"""The training losses by name: per-sample values of logits and soft targets. `backends.torch.losses` mirrors them.

Label smoothing and mixing are already in the targets; the options' defaults stand in `config.schema`.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from backends.contract import LINEAR_LOSSES, LossSpec

Loss = Callable[[mx.array, mx.array], mx.array]

_ITERATIONS = 5  # of the bi-tempered normalisation, as in the paper
_TINY = 1e-30  # keeps powers and logarithms, and their slopes, finite at zero


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """float32 `[N]` of logits and target probabilities `[N, C]`, as torch's `cross_entropy(reduction="none")`."""
    return -mx.sum(targets * _log_softmax(logits), axis=-1)


def focal(logits: mx.array, targets: mx.array, gamma: float, alpha: float) -> mx.array:
    """`alpha * sum_c t_c * (1 - p_c)**gamma * -log(p_c)` over the softmax, `[N]` (Lin et al. 2017, its softmax form).

    `alpha` is one factor for all classes; factors for each are the class weights.
    """
    log_p = _log_softmax(logits)
    missing = mx.maximum(-mx.expm1(log_p), _TINY)
    return -alpha * mx.sum(targets * mx.power(missing, gamma) * log_p, axis=-1)


def poly1(logits: mx.array, targets: mx.array, epsilon: float) -> mx.array:
    """Cross entropy plus `epsilon * sum_c t_c * (1 - p_c)`, `[N]` (Leng et al. 2022), as timm's `PolyCrossEntropy`."""
    log_p = _log_softmax(logits)
    return -mx.sum(targets * (log_p + epsilon * mx.expm1(log_p)), axis=-1)


def bce(logits: mx.array, targets: mx.array) -> mx.array:
    """Binary cross entropy of each class's sigmoid, its mean over the classes `[N]`, as timm's `BinaryCrossEntropy`."""
    return mx.mean((1 - targets) * logits - _log_sigmoid(logits), axis=-1)


def asymmetric(logits: mx.array, targets: mx.array, gamma_neg: float, gamma_pos: float, clip: float) -> mx.array:
    """Asymmetric loss of each class's sigmoid, summed over the classes, `[N]` (Ridnik et al. 2021).

    As timm's `AsymmetricLossMultiLabel`, but for its floor of 1e-8 under the probabilities, which takes the gradient
    from the samples that are most wrong.
    """
    p = mx.sigmoid(logits)
    if clip > 0:
        absent, log_absent = mx.maximum(p - clip, 0), mx.log(mx.minimum(mx.sigmoid(-logits) + clip, 1))
    else:
        absent, log_absent = p, _log_sigmoid(-logits)
    negatives = 1 - targets
    missing = mx.maximum(targets * mx.sigmoid(-logits) + negatives * absent, _TINY)
    focus = mx.power(missing, gamma_pos * targets + gamma_neg * negatives)
    return -mx.sum(focus * (targets * _log_sigmoid(logits) + negatives * log_absent), axis=-1)


def bi_tempered(logits: mx.array, targets: mx.array, t1: float, t2: float) -> mx.array:
    """The bi-tempered logistic loss, `[N]` (Amid et al. 2019): bounded for `t1` < 1, heavy-tailed for `t2` > 1.

    It is 0 where the probabilities are the targets; `t1 = t2 = 1` is the cross entropy less the targets' entropy.
    """
    log_p, power = tempered_log_softmax(logits, t2), 2 - t1
    fit = targets * (_log_t(mx.log(mx.maximum(targets, _TINY)), t1) - _log_t(log_p, t1))
    return mx.sum(fit - (mx.power(targets, power) - mx.exp(power * log_p)) / power, axis=-1)


def tempered_log_softmax(logits: mx.array, t2: float) -> mx.array:
    """Logarithms of the tempered softmax (1 <= `t2`) of `[N, C]`, normalised by five fixed-point iterations.

    The normaliser's slope is that of the exact one (its escort probabilities), as in the paper's own gradient.
    """
    if t2 == 1:
        return _log_softmax(logits)
    fixed = mx.stop_gradient(logits)
    constant = _normaliser(fixed, t2)
    escort = mx.softmax(t2 * _log_exp_t(fixed - constant, t2), axis=-1)
    return _log_exp_t(logits - constant - mx.sum(escort * (logits - fixed), axis=-1, keepdims=True), t2)


def _normaliser(logits: mx.array, t2: float) -> mx.array:
    """`[N, 1]`: what to take from the logits so that their tempered exponentials sum to one (Algorithm 1)."""
    most = mx.max(logits, axis=-1, keepdims=True)
    shifted = scaled = logits - most
    for _ in range(_ITERATIONS):
        log_sum = mx.logsumexp(_log_exp_t(scaled, t2), axis=-1, keepdims=True)
        scaled = shifted * mx.exp((1 - t2) * log_sum)
    log_sum = mx.logsumexp(_log_exp_t(scaled, t2), axis=-1, keepdims=True)
    return most - _log_t(-log_sum, t2)


def _log_t(log_x: mx.array, t: float) -> mx.array:
    """The tempered logarithm of x, given log(x)."""
    return log_x if t == 1 else mx.expm1((1 - t) * log_x) / (1 - t)


def _log_exp_t(x: mx.array, t: float) -> mx.array:
    """The logarithm of the tempered exponential of x <= 0, for t > 1."""
    return mx.log1p((1 - t) * x) / (1 - t)


def _log_softmax(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _log_sigmoid(x: mx.array) -> mx.array:
    return -mx.logaddexp(-x, 0.0)


LOSSES: dict[str, Callable[..., mx.array]] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "bi_tempered": bi_tempered,
    "bce": bce,
    "poly1": poly1,
    "asymmetric": asymmetric,
}


def make(spec: LossSpec) -> Loss:
    """The loss of `spec`, of logits and targets `[N, C]`, as float32 `[N]`; raises `ConfigError` as `LossSpec.of`."""
    loss = spec.of(LOSSES, "mlx")
    if not spec.class_weights:
        return loss
    weights, linear = mx.array(spec.class_weights), spec.name in LINEAR_LOSSES

    def per_sample(logits: mx.array, targets: mx.array) -> mx.array:
        return loss(logits, targets * weights) if linear else loss(logits, targets) * (targets @ weights)

    return per_sample
