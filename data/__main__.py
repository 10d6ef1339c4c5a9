"""`python -m data`: `look` prints what is understood of a data set, `audit` what is wrong with it, `preview` draws what
training will see of it, `enlarge` oversamples its small classes, `cache` lists and clears the cached images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.program import entry
from config.program.parser import Parser, whole

if TYPE_CHECKING:
    from config.schema import Settings

_PROG = "python -m data"
_SETTINGS = (
    "Any setting of a training may follow as --section.key VALUE, such as --augment.ops '{erosion: false}', or --config"
    " FILE"
)
# The short options of the commands and the settings that they stand for.
_SHORT = {
    "root": "data.root",
    "augment": "augment.level",
    "seed": "seed",
    "size": "data.image_size",
    "actions": "data.audit_actions",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, with a `TandemError` as one line on stderr."""
    return entry.run(_run, argv, _PROG)


def _run(words: list[str]) -> int:
    parser = _parser()
    arguments, rest = parser.parse_known_args(words)
    if arguments.command == "cache":
        _cache(arguments)
        return 0
    from config import load

    values = [(_SHORT[name], getattr(arguments, name, None)) for name in _SHORT]
    line = [token for name, value in values if value is not None for token in (f"--{name}", value)]
    settings = load.parse([*line, *rest], f"{_PROG} {arguments.command}")
    try:
        arguments.run(settings, arguments)
    except KeyboardInterrupt:
        print("stopped; the next time goes on where this one was", file=sys.stderr)
        return 130
    return 0


def _look(settings: Settings, arguments: argparse.Namespace) -> None:
    from data import look

    print(look.text(settings.data, arguments.root or str(settings.data.root)))


def _preview(settings: Settings, arguments: argparse.Namespace) -> None:
    from data.augment import preview  # after --help, which must not wait for these imports

    print(preview.write(settings, arguments.out, arguments.images, arguments.columns, arguments.ops))


def _audit(settings: Settings, arguments: argparse.Namespace) -> None:
    from data.audit import command

    command.run(settings.data, arguments.out, arguments.min_per_class)


def _enlarge(settings: Settings, arguments: argparse.Namespace) -> None:
    from data.augment import oversample

    added = oversample.oversample(settings.data, arguments.out, arguments.min_per_class, settings.seed)
    counts = ", ".join(f"{count} of {name}" for name, count in added.items()) or "none, no class is that small"
    print(f"wrote {arguments.out}, damaged copies: {counts}")
    print(f"train on it with --data.root {arguments.out} --folds.strategy stratified_group")


def _cache(arguments: argparse.Namespace) -> None:
    from data.cache import disk, store

    root = disk.cache_root(arguments.dir)
    sizes = [(folder, store.size(folder)) for folder in disk.folders(root)]
    for folder, size in sizes:
        print(f"{size / 1e9:8.2f} GB  {folder}")
        if arguments.clear:
            disk.remove(folder)
    done = "removed" if arguments.clear else "in all"
    print(f"{sum(size for _, size in sizes) / 1e9:8.2f} GB  {done}" if sizes else f"{root} keeps no images")


def _parser() -> Parser:
    parser = Parser(prog=_PROG, description="What can be done with a data set before training.")
    entry.add_options(parser)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Callable[..., None], summary: str, description: str, root: str = "the data set") -> Any:
        epilog = f"{_SETTINGS}; train_torch.py --help lists them."
        # Options that a command does not have pass as settings; `load` refuses those that are none.
        added = commands.add_parser(
            name, help=summary, description=description, epilog=epilog, passes=lambda _option: True
        )
        added.add_argument("--root", help=root)
        added.set_defaults(run=run)
        return added

    command(
        "look",
        _look,
        "tell what is understood of a data set, without opening its images",
        "Print where images, labels and splits come from, the classes with their counts, what is left out, and the "
        "command that trains on it.",
    )
    audit = command(
        "audit",
        _audit,
        "say which images and labels of a data set deserve a look",
        "Look at every image once (the next time only at those that changed): damaged and odd ones, duplicates, leaks "
        "into the test set, conflicting labels, small and overlapping classes, and how training and test images "
        "differ. Nothing is changed.",
    )
    audit.add_argument(
        "--out", type=Path, default=Path("audit"), help="folder for audit.csv and audit.html (default: audit)"
    )
    audit.add_argument("--actions", metavar="FILE", help="an edited audit.csv: audit what is left after applying it")
    audit.add_argument(
        "--min_per_class", type=whole(1, 1000), default=10, help="images that a class should have (default: 10)"
    )
    enlarge = command(
        "enlarge",
        _enlarge,
        "copy a data set, with damaged copies of the images of small classes",
        "Write a copy of the training set in which each class has at least so many images: copies are skewed, turned, "
        "blurred, noisy or shaded, and keep the group of their original.",
    )
    enlarge.add_argument("--out", type=Path, required=True, help="the new folder")
    enlarge.add_argument(
        "--min_per_class", type=whole(1, 1000), required=True, help="images that each class gets at least"
    )
    enlarge.add_argument("--seed", help="decides the damage (default: 0)")
    cache = commands.add_parser(
        "cache",
        help="show, or remove, the decoded images that data.cache_gb keeps",
        description="List what data.cache_gb has had kept: a folder for each form and size of the images.",
    )
    cache.add_argument("--dir", type=Path, help="data.cache_dir, where that was set")
    cache.add_argument("--clear", action="store_true", help="remove it all; no training may be running on it")
    sheet = command(
        "preview",
        _preview,
        "write a picture of what training will see of some images",
        "Write a contact sheet: a row for each image, the original first.",
        root="the data set, or any folder of images",
    )
    sheet.add_argument("--augment", metavar="LEVEL", help="none, minimal, moderate or hard")
    sheet.add_argument("--out", type=Path, default=Path("preview.png"), help="the picture (default: preview.png)")
    sheet.add_argument("--images", type=whole(1, 1000), default=8, help="how many images (default: 8)")
    sheet.add_argument("--columns", type=whole(1, 1000), default=8, help="how many epochs to show (default: 8)")
    sheet.add_argument("--ops", action="store_true", help="a column for each operation, alone, in place of epochs")
    sheet.add_argument("--seed", help="decides the images and the draws (default: 0)")
    sheet.add_argument("--size", help="side of the model's input in pixels (default: the model's)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
