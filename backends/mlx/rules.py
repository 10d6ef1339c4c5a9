"""How one parameter moves in an update: AdamW and SGD as torch.optim defines them, Lion and Muon as timm does.

Each rule is made for one update and then applied to every parameter that it is for. Which parameters those are, their
rates and the moments' places are in `optim`.

An update that is not to be taken has rates and gradients of zero, and its rule is made with `taken` false, which keeps
the moments: so nothing has to be chosen afterwards, and `mx.compile` makes one kernel of a parameter's whole update
(for AdamW only if the denominator stands before the numerator: the depth of its fusion ends at 11).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

from backends.contract import OptimSpec
from backends.mlx.model import Arrays

# (parameter, gradient, its moments, learning rate, weight decay) to (parameter, moments)
Rule = Callable[[mx.array, mx.array, Arrays, mx.array, mx.array], tuple[mx.array, Arrays]]

# Jordan 2024: the quintic whose five-fold iteration brings singular values near one, and what keeps 0 / 0 away.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_TINY = 1e-7


def adamw(spec: OptimSpec, count: mx.array, taken: mx.array) -> Rule:
    """AdamW (Loshchilov and Hutter 2019); `count` is the int32 number of the parameter's update, from 1."""
    beta1, beta2 = spec.betas
    keep1, keep2 = mx.where(taken, beta1, 1.0), mx.where(taken, beta2, 1.0)
    t = count.astype(mx.float32)
    # 1 - beta**t loses digits in float32 for small t; expm1 does not.
    correction1 = -mx.expm1(t * math.log(beta1)) if beta1 else 1.0
    correction2 = mx.sqrt(-mx.expm1(t * math.log(beta2))) if beta2 else 1.0

    def rule(p: mx.array, g: mx.array, m: Arrays, lr: mx.array, decay: mx.array) -> tuple[mx.array, Arrays]:
        p = p * (1 - lr * decay)
        first = keep1 * m["exp_avg"] + (1 - beta1) * g
        second = keep2 * m["exp_avg_sq"] + (1 - beta2) * mx.square(g)
        p = p - (lr / correction1) / (mx.sqrt(second) / correction2 + spec.eps) * first
        return p, {"exp_avg": first, "exp_avg_sq": second}

    return rule


def sgd(spec: OptimSpec, taken: mx.array) -> Rule:
    """SGD with momentum, Nesterov's or the plain one; weight decay is added to the gradient."""
    keep = mx.where(taken, spec.momentum, 1.0)

    def rule(p: mx.array, g: mx.array, m: Arrays, lr: mx.array, decay: mx.array) -> tuple[mx.array, Arrays]:
        g = g + decay * p
        if not spec.momentum:
            return p - lr * g, {}
        buffer = keep * m["momentum_buffer"] + g
        step = g + spec.momentum * buffer if spec.nesterov else buffer
        return p - lr * step, {"momentum_buffer": buffer}

    return rule


def lion(spec: OptimSpec, taken: mx.array) -> Rule:
    """Lion (Chen et al. 2023): the sign of an average of the gradients; decoupled weight decay."""
    beta1, beta2 = spec.betas
    new = mx.where(taken, 1 - beta2, 0.0)

    def rule(p: mx.array, g: mx.array, m: Arrays, lr: mx.array, decay: mx.array) -> tuple[mx.array, Arrays]:
        average = m["exp_avg"]
        p = p * (1 - lr * decay) - lr * mx.sign(average + (1 - beta1) * (g - average))
        return p, {"exp_avg": average + new * (g - average)}

    return rule


def muon(spec: OptimSpec, dtype: mx.Dtype, taken: mx.array) -> Rule:
    """Muon (Jordan 2024): the averaged gradient, its singular values made one; decoupled weight decay.

    The step is scaled by 0.2 * sqrt(larger side), so that its size is AdamW's and one learning rate serves both (Liu
    et al. 2025). The iteration runs in `dtype`.
    """
    new = mx.where(taken, 1 - spec.momentum, 0.0)

    def rule(p: mx.array, g: mx.array, m: Arrays, lr: mx.array, decay: mx.array) -> tuple[mx.array, Arrays]:
        buffer = m["momentum_buffer"] + new * (g - m["momentum_buffer"])
        step = g + spec.momentum * (buffer - g) if spec.nesterov else buffer
        rows = p.shape[0]
        scale = 0.2 * math.sqrt(max(rows, p.size // rows))
        turned = orthogonal(step.reshape(rows, -1), dtype).reshape(p.shape)
        return p * (1 - lr * decay) - (lr * scale) * turned, {"momentum_buffer": buffer}

    return rule


def orthogonal(x: mx.array, dtype: mx.Dtype) -> mx.array:
    """The float32 matrix `x` `[R, C]` with its singular values brought near one by five Newton-Schulz iterations."""
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    length = mx.sqrt(mx.sum(mx.sum(mx.square(x), axis=-1)))
    x = (x / mx.maximum(length, _TINY)).astype(dtype)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = mx.addmm(x, mx.addmm(gram, gram, gram, alpha=c, beta=b), x, beta=a)
    return (x.T if tall else x).astype(mx.float32)
