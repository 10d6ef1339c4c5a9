"""The command line: `python -m infer` predicts images, `evaluate` scores members on labelled ones, `fit` fits an
ensemble, `oof` predicts out-of-fold images with TTA views, `validate` checks a submission, `teacher` writes what a
student learns from.

Errors of `config.errors` become one line on standard error and an exit code; everything else is a bug.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from config.errors import ConfigError
from config.program import entry
from config.program.parser import Parser, whole
from config.text import counted, nearest, shown

# What a command needs is imported when it is called: --help does not wait for SciPy and scikit-learn.
COMMANDS = ("evaluate", "fit", "oof", "validate", "adapt", "serve", "teacher")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return entry.run(_run, argv, "python -m infer")


def _run(words: list[str]) -> int:
    if words and words[0] in COMMANDS:
        if words[0] == "teacher":
            return _teacher(words[1:])
        return int(importlib.import_module(f"infer.commands.{words[0]}").main(words[1:]))
    if words and not words[0].startswith("-"):
        raise ConfigError(
            f"{shown(words[0])}: no such command{nearest(words[0], COMMANDS)} there are {', '.join(COMMANDS)}; "
            "images to predict are given by --images; see python -m infer --help"
        )
    from infer.commands import predict

    return predict.main(words)


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
    options = parser.parse_args(words)
    import numpy as np

    from ensemble import ensemble_file, views
    from ensemble.oof import teacher_file
    from infer import teacher

    ensemble_file.refuse_existing(options.out)
    predictions = teacher.predict(
        *(
            options.runs,
            options.images,
            views.expand(options.tta),
            options.id_column,
            options.batch_size,
            options.workers,
        ),
        on_bad_image=options.on_bad_image,
    )
    teacher_file.write(options.out, predictions)
    folds, images = (len(np.unique(column)) for column in (predictions.fold, predictions.ids))
    print(
        f"wrote {options.out}: {counted(len(predictions.ids), 'answer')} for {counted(folds, 'fold')}, "
        f"{counted(images, 'image')}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
