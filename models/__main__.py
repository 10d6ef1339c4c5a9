"""`python -m models`: `list` and `show` say what can be trained, where, and how; `save` writes a checkpoint, `push`
shares a trained model as timm loads it."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path

from config.errors import ConfigError
from config.program import entry
from config.program.parser import Parser, whole
from models import defaults, registry
from models.registry import ModelSpec

_ENGINES = {"torch": "torch", "mlx": "MLX"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, with a `TandemError` as one line on stderr."""
    return entry.run(_run, argv, "python -m models")


def _run(words: list[str]) -> int:
    args = _parser().parse_args(words)
    commands = {"list": lambda: listing(args.pattern), "show": lambda: description(args.name)}
    commands |= {"save": lambda: saved(args), "push": lambda: pushed(args)}
    lines = commands[args.command]()
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
    refusals = "".join(f" ({reason})" for reason in registry.engines(spec).values() if reason)
    fixed = ", fixed by default" if spec.fixed_input_size else ""
    tested = f"; timm tests at {spec.test_size}" if spec.test_size else ""
    rows = [
        ("name", spec.name),
        ("family", spec.family),
        ("engines", _engines(spec) + refusals),
        ("parameters", f"{spec.parameters:,}"),
        ("image size", f"{prep.size} pixels{fixed}{tested}"),
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


def saved(args: argparse.Namespace) -> list[str]:
    """Write a checkpoint folder of a pretrained network; what was recognised in its weights."""
    from models import pretrained  # NumPy and safetensors, which the other commands do without

    try:
        classes = args.classes.read_text(encoding="utf-8").split("\n") if args.classes else []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--classes {args.classes}: unreadable ({error})") from error
    names = [line.strip() for line in classes if line.strip()]
    notes = pretrained.save(args.name, args.out, args.weights, names, args.image_size)
    return [*notes, f"wrote {args.out}"]


def pushed(args: argparse.Namespace) -> list[str]:
    """Write or upload the folder of a trained model that timm loads; what was done, and how to load it."""
    from models.share import share  # NumPy and safetensors, which the other commands do without

    return share(
        args.run, args.repo, args.out, args.fold, args.evaluation, args.dataset, args.license, private=args.private
    )


def _candidates(pattern: str) -> list[ModelSpec]:
    if "." not in pattern:
        return [registry.get(arch) for arch in registry.names(pattern)]
    arches = registry.names(pattern.partition(".")[0])
    return [registry.get(f"{arch}.{tag}" if tag else arch) for arch in arches for tag in registry.tags(arch)]


def _engines(spec: ModelSpec) -> str:
    return ", ".join(_ENGINES[name] for name, refusal in registry.engines(spec).items() if not refusal)


def _weights(spec: ModelSpec) -> str:
    if not spec.hub_id:
        return "none on the hub: --weights PATH or --weights none"
    classes = f"{spec.hub_classes} classes" if spec.hub_classes else "no classifier"
    return f"huggingface.co/{spec.hub_id}, {classes}, {spec.hub_size} pixels"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _parser() -> Parser:
    parser = Parser(prog="python -m models", description="The models that Tandem knows.")
    entry.add_options(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    listed = commands.add_parser("list", help="name, parameters, image size, engines and license of each model")
    listed.add_argument("pattern", nargs="?", default="*", help="a shell pattern, such as 'convnext*' or '*.*in22k*'")
    show = commands.add_parser("show", help="preprocessing and per-model defaults of one model")
    show.add_argument("name", help="an architecture, ARCH.TAG, or an alias such as convnext_base_384")
    add = commands.add_parser(
        "save", help="write a pretrained network as a checkpoint folder, without training"
    ).add_argument
    add("name", metavar="NAME", help="a model's name, hf:USER/NAME, a weights file or a hub folder")
    add("out", type=Path, metavar="OUT", help="the new folder")
    add("--weights", metavar="FILE", help="weights of the model NAME: a file, a folder or hf:USER/NAME")
    add(
        "--classes",
        type=Path,
        metavar="FILE",
        help="class names, one per line in the order of the logits (default: the file's own, or ImageNet's)",
    )
    add("--image_size", type=whole(1), metavar="PIXELS", help="side of the input (default: the model's own)")
    _add_push(commands.add_parser("push", help="share a trained model on the Hugging Face hub, as timm loads it"))
    return parser


def _add_push(parser: Parser) -> None:
    add = parser.add_argument
    parser.description = (
        "Upload a trained model: timm's config.json, model.safetensors and a model card (README.md) with the measured"
        " scores. timm.create_model('hf-hub:USER/NAME') loads it, and so does --weights hf:USER/NAME."
    )
    add("run", type=Path, metavar="RUN", help="a finished run (its best fold is taken), or a checkpoint folder")
    add("repo", nargs="?", default="", metavar="USER/NAME", help="the repository, made where it is missing")
    add("--out", type=Path, metavar="DIR", help="write the new folder DIR and upload nothing")
    add("--fold", type=whole(0), metavar="K", help="this fold of the run in place of the best one")
    add("--private", action="store_true", help="make a new repository private")
    add("--dataset", default="", metavar="NAME", help="the data set's name (default: that of its folder)")
    add("--license", default="", metavar="ID", help="the model's licence, such as mit (default: the base weights')")
    add(
        "--evaluation",
        type=Path,
        metavar="DIR",
        help="also the scores that python -m infer evaluate --member CHECKPOINT wrote into this folder",
    )


if __name__ == "__main__":
    sys.exit(main())
