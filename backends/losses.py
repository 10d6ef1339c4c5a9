"""The training losses by name, written once for both engines: per-sample values of logits and soft targets.

Each takes an engine's `Ops`, logits and targets `[N, C]`, and its options; it gives `[N]`. Label smoothing and mixing
are already in the targets. The names, options and defaults are `config.sections.train.LOSS_OPTIONS`.

`Ops` has an engine's functions of its own arrays: exp, expm1, log, log1p, sigmoid, log_sigmoid; softmax and log_softmax
of rows; `total(x, keep)`, `log_sum_exp(x)` and `largest(x)` of rows, the last two `[N, 1]`; `at_least` and `at_most` a
number; `fixed`, the array as a constant without a gradient; and the engine's `cross_entropy`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from backends.contract import LossSpec
from config.errors import ConfigError

Ops = Any

_ITERATIONS = 5  # of the bi-tempered normalisation, as in the paper
_TINY = 1e-30  # keeps powers and logarithms, and their slopes, finite at zero


def cross_entropy(ops: Ops, logits: Any, targets: Any) -> Any:
    """Cross entropy, as torch's `cross_entropy(reduction="none")`."""
    return ops.cross_entropy(logits, targets)


def focal(ops: Ops, logits: Any, targets: Any, gamma: float, alpha: float) -> Any:
    """`alpha * sum_c t_c * (1 - p_c)**gamma * -log(p_c)` over the softmax (Lin et al. 2017, its softmax form).

    `alpha` is one factor for all classes; factors for each are the class weights.
    """
    log_p = ops.log_softmax(logits)
    missing = ops.at_least(-ops.expm1(log_p), _TINY)
    return -alpha * ops.total(targets * missing**gamma * log_p)


def poly1(ops: Ops, logits: Any, targets: Any, epsilon: float) -> Any:
    """Cross entropy plus `epsilon * sum_c t_c * (1 - p_c)` (Leng et al. 2022), as timm's `PolyCrossEntropy`."""
    log_p = ops.log_softmax(logits)
    return -ops.total(targets * (log_p + epsilon * ops.expm1(log_p)))


def bce(ops: Ops, logits: Any, targets: Any) -> Any:
    """Binary cross entropy of each class's sigmoid, its mean over the classes, as timm's `BinaryCrossEntropy`."""
    return ops.total((1 - targets) * logits - ops.log_sigmoid(logits)) / logits.shape[-1]


def asymmetric(ops: Ops, logits: Any, targets: Any, gamma_neg: float, gamma_pos: float, clip: float) -> Any:
    """Asymmetric loss of each class's sigmoid, summed over the classes (Ridnik et al. 2021).

    As timm's `AsymmetricLossMultiLabel`, but for its floor of 1e-8 under the probabilities, which takes the gradient
    from the samples that are most wrong.
    """
    p, q = ops.sigmoid(logits), ops.sigmoid(-logits)
    if clip > 0:
        absent, log_absent = ops.at_least(p - clip, 0), ops.log(ops.at_most(q + clip, 1))
    else:
        absent, log_absent = p, ops.log_sigmoid(-logits)
    negatives = 1 - targets
    missing = ops.at_least(targets * q + negatives * absent, _TINY)
    focus = missing ** (gamma_pos * targets + gamma_neg * negatives)
    return -ops.total(focus * (targets * ops.log_sigmoid(logits) + negatives * log_absent))


def bi_tempered(ops: Ops, logits: Any, targets: Any, t1: float, t2: float) -> Any:
    """The bi-tempered logistic loss (Amid et al. 2019): bounded for `t1` < 1, heavy-tailed for `t2` > 1.

    It is 0 where the probabilities are the targets; `t1 = t2 = 1` is the cross entropy less the targets' entropy.
    """
    log_p, power = tempered_log_softmax(ops, logits, t2), 2 - t1
    fit = targets * (_log_t(ops, ops.log(ops.at_least(targets, _TINY)), t1) - _log_t(ops, log_p, t1))
    return ops.total(fit - (targets**power - ops.exp(power * log_p)) / power)


def tempered_log_softmax(ops: Ops, logits: Any, t2: float) -> Any:
    """Logarithms of the tempered softmax (1 <= `t2`) of `[N, C]`, normalised by five fixed-point iterations.

    The normaliser's slope is that of the exact one (its escort probabilities), as in the paper's own gradient.
    """
    if t2 == 1:
        return ops.log_softmax(logits)
    fixed = ops.fixed(logits)
    constant = _normaliser(ops, fixed, t2)
    escort = ops.softmax(t2 * _log_exp_t(ops, fixed - constant, t2))
    return _log_exp_t(ops, logits - constant - ops.total(escort * (logits - fixed), keep=True), t2)


def _normaliser(ops: Ops, logits: Any, t2: float) -> Any:
    """`[N, 1]`: what to take from the logits so that their tempered exponentials sum to one (Algorithm 1)."""
    most = ops.largest(logits)
    shifted = scaled = logits - most
    for _ in range(_ITERATIONS):
        scaled = shifted * ops.exp((1 - t2) * ops.log_sum_exp(_log_exp_t(ops, scaled, t2)))
    return most - _log_t(ops, -ops.log_sum_exp(_log_exp_t(ops, scaled, t2)), t2)


def _log_t(ops: Ops, log_x: Any, t: float) -> Any:
    """The tempered logarithm of x, given log(x)."""
    return log_x if t == 1 else ops.expm1((1 - t) * log_x) / (1 - t)


def _log_exp_t(ops: Ops, x: Any, t: float) -> Any:
    """The logarithm of the tempered exponential of x <= 0, for t > 1."""
    return ops.log1p((1 - t) * x) / (1 - t)


LOSSES: dict[str, Callable[..., Any]] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "bi_tempered": bi_tempered,
    "bce": bce,
    "poly1": poly1,
    "asymmetric": asymmetric,
}
# Those that are, for each sample, a sum over the classes of target times cost.
LINEAR = ("cross_entropy", "focal", "poly1")


def make(spec: LossSpec, ops: Ops, class_weights: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """The loss of `spec`, of logits and targets `[N, C]`, as `[N]`; `class_weights(logits)` are those of `spec` as an
    array `[C]` beside the logits.

    Raises `ConfigError` for a name that is not known, and for options that are not exactly the loss's own.
    """
    if spec.name not in LOSSES:
        raise ConfigError(f"loss {spec.name!r} is not known to the engines; choose {', '.join(LOSSES)}")
    takes = list(inspect.signature(LOSSES[spec.name]).parameters)[3:]
    if set(takes) != set(spec.options):
        raise ConfigError(
            f"loss {spec.name!r}: found the options {', '.join(spec.options) or 'none'}; give "
            f"{', '.join(takes) or 'none'}"
        )
    loss = functools.partial(LOSSES[spec.name], ops, **spec.options)
    if not spec.class_weights:
        return loss
    if spec.name in LINEAR:
        return lambda logits, targets: loss(logits, targets * class_weights(logits))
    return lambda logits, targets: loss(logits, targets) * (targets @ class_weights(logits))
