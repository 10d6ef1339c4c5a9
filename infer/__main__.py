"""The command line: `python -m infer` answers images, `evaluate` scores members on labelled ones, `fit` fits an
ensemble, `oof` answers out-of-fold images with TTA views, `validate` checks a submission, `teacher` writes what a
student learns from.

Errors of `config.errors` become one line on standard error and an exit code; everything else is a bug.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from config.errors import ConfigError
from config.program import entry
from config.program.parser import Parser, whole
from config.text import counted, nearest, shown

# What a command needs is imported when it is called: --help does not wait for SciPy and scikit-learn.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return entry.run(_run, argv, "python -m infer")


def _run(words: list[str]) -> int:
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]](words[1:])
    if words and not words[0].startswith("-"):
        raise ConfigError(
            f"{shown(words[0])}: no such command{nearest(words[0], list(COMMANDS))} there are {', '.join(COMMANDS)}; "
            "images to predict are given by --images; see python -m infer --help"
        )
    from infer.commands import predict

    return predict.main(words)


def _command(name: str) -> Callable[[list[str]], int]:
    """The `main` of a command's module, imported when it is called."""
    return lambda words: int(importlib.import_module(f"infer.commands.{name}").main(words))


def _teacher(words: list[str]) -> int:
    about = "Write what finished runs say of images, fold by fold, as teacher.file or teacher.extra_file of a new run."
    parser = Parser("python -m infer teacher", description=about)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folder; several must have the same folds"
    )
    parser.add_argument(
        "--images", type=Path, help="images to pseudo-label: a folder or a CSV (default: the runs' own training images)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="the new file of answers")
    parser.add_argument("--tta", nargs="+", default=["none"], metavar="VIEW", help="views or presets (default: none)")
    parser.add_argument("--batch_size", type=whole(1), default=64, help="images a batch (default: %(default)s)")
    parser.add_argument("--workers", type=whole(0), default=0, help="decoding threads (default: one a core)")
    parser.add_argument(
        "--on_bad_image",
        choices=("skip", "partial", "error"),
        default="skip",
        help="unreadable image: no answer, and students leave it out, or stop; partial as skip, and takes what remains"
        " of truncated files (default: %(default)s)",
    )
    parser.add_argument("--id_column", default="ID", help="the images' column in a CSV (default: %(default)s)")
    asked = parser.parse_args(words)
    import numpy as np

    from ensemble import ensemble_file, views
    from ensemble.oof import teacher_file
    from infer import teacher

    ensemble_file.refuse_existing(asked.out)
    seen = views.expand(asked.tta)
    answers = teacher.answer(
        *(asked.runs, asked.images, seen, asked.id_column, asked.batch_size, asked.workers),
        on_bad_image=asked.on_bad_image,
    )
    teacher_file.write(asked.out, answers)
    folds = np.unique(answers.fold)
    print(
        f"wrote {asked.out}: {counted(len(answers.ids), 'answer')} for {counted(len(folds), 'fold')}, "
        f"{counted(len(np.unique(answers.ids)), 'image')}"
    )
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    **{name: _command(name) for name in ("evaluate", "fit", "oof", "validate", "adapt", "serve")},
    "teacher": _teacher,
}


if __name__ == "__main__":
    sys.exit(main())
