"""The precisions: which format takes which, and how far an artefact of each may differ from its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from config.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """The allowed differences of an artefact.

    `floors`: logits, in multiples of torch's own fp32 error (0: any). `top1_agreement` is of the images that are no
    ties, `accuracy` the share of right predictions that may be lost on them. A tie: the checkpoint's first class is at
    most by `ties` more probable than its second, so that rounding explains a flip.
    """

    top1_agreement: float
    floors: float = 0.0
    log_loss: float = float("inf")
    accuracy: float = 1.0
    ties: float = 0.0


@dataclass(frozen=True)
class Precision:
    """The formats that take it, its limits, and for palettes the bits of an index."""

    targets: tuple[str, ...]
    limits: Limits
    about: str
    palette_bits: int = 0


_BOTH = ("onnx", "coreml")
_LOSSY = Limits(top1_agreement=0.99, log_loss=0.03, accuracy=0.01, ties=0.2)

PRECISIONS = {
    "fp32": Precision(_BOTH, Limits(top1_agreement=1.0, floors=5.0), "answers as the checkpoint does"),
    "fp16": Precision(_BOTH, Limits(top1_agreement=0.999, log_loss=0.01, accuracy=0.001, ties=0.02), "half the size"),
    "int8": Precision(("onnx",), _LOSSY, "weights and activations in 8 bits, calibrated on images"),
    "w8": Precision(("coreml",), _LOSSY, "fp16 with weights in 8 bits"),
    "palette8": Precision(("coreml",), _LOSSY, "fp16 with weights from a table of 256", 8),
    "palette6": Precision(("coreml",), _LOSSY, "fp16 with weights from a table of 64", 6),
    "palette4": Precision(("coreml",), _LOSSY, "fp16 with weights from a table of 16", 4),
}


def lossy(name: str) -> bool:
    """Whether single layers can be kept in float."""
    return PRECISIONS[name].limits is _LOSSY


def pairs(targets: list[str], precisions: list[str]) -> list[tuple[str, str]]:
    """The (target, precision) pairs that exist; `ConfigError` for a target or a precision with none."""
    chosen = [(t, p) for t in targets for p in precisions if t in PRECISIONS[p].targets]
    for target in targets:
        if target not in (t for t, _ in chosen):
            known = ", ".join(name for name, p in PRECISIONS.items() if target in p.targets)
            raise ConfigError(f"{target} has no {' or '.join(precisions)}; its precisions are {known}")
    for precision in precisions:
        if precision not in (p for _, p in chosen):
            takes = " or ".join(PRECISIONS[precision].targets)
            raise ConfigError(f"precision {precision} is one of {takes} only; add --to {takes} or leave it out")
    return chosen
