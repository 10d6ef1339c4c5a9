"""`python -m models list [PATTERN]` and `python -m models show NAME`: what can be trained, where, and how."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Sequence

from config.errors import TandemError
from models import defaults, registry
from models.registry import ModelSpec

_ENGINES = {"torch": "torch", "mlx": "MLX"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, with a `TandemError` as one line on stderr."""
    args = _parser().parse_args(argv)
    try:
        lines = listing(args.pattern) if args.command == "list" else description(args.name)
    except TandemError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:
        # `list | head`: the reader has gone; keep the interpreter from writing once more on its way out.
        sys.stdout = None
    return 0


def listing(pattern: str) -> list[str]:
    """One line a model that matches a shell pattern: name, parameters, image size, engines, license.

    Architectures are listed with their default tag; a pattern with a dot is matched against every full name.
    """
    specs = [s for s in _candidates(pattern) if fnmatch.fnmatchcase(s.name, pattern) or "." not in pattern]
    rows = [("name", "parameters", "pixels", "engines", "license of the weights")]
    rows += [
        (s.name, f"{s.parameters / 1e6:.1f} M", str(s.preprocessing.size), _engines(s), s.license or "not said")
        for s in specs
    ]
    return _aligned(rows) if specs else [f"no model matches {pattern!r}; `python -m models list` shows all"]


def description(name: str) -> list[str]:
    """What a recipe takes from the model `name`: preprocessing, defaults, and where its weights come from."""
    spec = registry.get(name)
    prep = spec.preprocessing
    tags = [t for t in registry.tags(spec.arch) if t and t != spec.tag]
    rows = [
        ("name", spec.name),
        ("family", spec.family),
        ("engines", _why(spec)),
        ("parameters", f"{spec.parameters:,}"),
        ("image size", _size(spec)),
        ("mean", ", ".join(f"{v:g}" for v in prep.mean)),
        ("std", ", ".join(f"{v:g}" for v in prep.std)),
        ("fit", f"{prep.fit}, crop_pct {prep.crop_pct:g}, {prep.interpolation}"),
        ("learning rate", f"{defaults.learning_rate(spec):g} (AdamW, fine-tuning)"),
        ("batch size", str(defaults.batch_size(spec))),
        ("weights", _weights(spec)),
        ("license", spec.license or "not said"),
        ("other tags", ", ".join(tags) or "none"),
    ]
    return _aligned(rows)


def _candidates(pattern: str) -> list[ModelSpec]:
    if "." not in pattern:
        return [registry.get(arch) for arch in registry.names(pattern)]
    arches = registry.names(pattern.partition(".")[0])
    return [registry.get(f"{arch}.{tag}" if tag else arch) for arch in arches for tag in registry.tags(arch)]


def _engines(spec: ModelSpec) -> str:
    return ", ".join(_ENGINES[name] for name, refusal in registry.engines(spec).items() if not refusal)


def _why(spec: ModelSpec) -> str:
    """The engines, and why there are not two of them."""
    refusals = "".join(f" ({reason})" for reason in registry.engines(spec).values() if reason)
    return _engines(spec) + refusals


def _size(spec: ModelSpec) -> str:
    fixed = ", fixed by default" if spec.fixed_input_size else ""
    return f"{spec.preprocessing.size} pixels{fixed}" + (f"; timm tests at {spec.test_size}" if spec.test_size else "")


def _weights(spec: ModelSpec) -> str:
    if not spec.hub_id:
        return "none on the hub: --weights PATH or --weights none"
    classes = f"{spec.hub_classes} classes" if spec.hub_classes else "no classifier"
    return f"huggingface.co/{spec.hub_id}, {classes}, {spec.hub_size} pixels"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models", description="The models that Tandem knows.")
    commands = parser.add_subparsers(dest="command", required=True)
    every = commands.add_parser("list", help="name, parameters, image size, engines and license of each model")
    every.add_argument("pattern", nargs="?", default="*", help="a shell pattern, such as 'convnext*' or '*.*in22k*'")
    one = commands.add_parser("show", help="preprocessing and per-model defaults of one model")
    one.add_argument("name", help="an architecture, ARCH.TAG, or an alias such as convnext_base_384")
    return parser


if __name__ == "__main__":
    sys.exit(main())
