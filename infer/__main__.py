"""The command line: `python -m infer` answers images, `evaluate` scores members on labelled ones, `fit` fits an
ensemble, `oof` answers out-of-fold images with TTA views, `validate` checks a submission, `teacher` writes what a
student learns from.

Errors of `config.errors` become one line on standard error and an exit code; everything else is a bug.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from config import heap, renamed, streams
from config.errors import TandemError
from ensemble import views
from ensemble.oof import teacher_file
from infer.commands import evaluate, fit, oof, predict, validate
from infer.commands.members import positive

if TYPE_CHECKING:
    from infer.evaluation.scoring import Evaluation

# What a command needs is imported after its arguments are read: --help does not wait for SciPy and scikit-learn.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    heap.retain_freed_memory()
    streams.escape()
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "fit": fit.main,
        "oof": oof.main,
        "validate": validate.main,
        "evaluate": _evaluate,
        "teacher": _teacher,
        "adapt": _adapt,
        "serve": _serve,
    }
    try:
        renamed.refuse_flags(words)
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            if words and words[0] in commands:
                return commands[words[0]](words[1:])
            return predict.main(words)
    except TandemError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _parser(command: str, about: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(f"python -m infer{command}", description=about, allow_abbrev=False)


def _evaluate(words: list[str]) -> int:
    def draw(found: Evaluation, out: Path) -> list[Path]:
        # Plots and pages are training's, a level above infer: only this entry point brings the two together.
        return list(importlib.import_module("training.report.evaluation").write(found, out))

    return evaluate.main(words, draw)


def _adapt(words: list[str]) -> int:
    from infer.commands import adapt

    return adapt.main(words)


def _serve(words: list[str]) -> int:
    from infer.commands import serve

    def render(title: str, views: Sequence[str], limit: int, post: str) -> bytes:
        # Pages are training's, a level above infer, as in `_evaluate`.
        return bytes(importlib.import_module("training.report").prediction_page(title, views, limit, post))

    return serve.main(words, render)


def _teacher(words: list[str]) -> int:
    about = "Write what finished runs say of images, fold by fold, as teacher.file or teacher.extra_file of a new run."
    parser = _parser(" teacher", about)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folder; several must have the same folds"
    )
    parser.add_argument(
        "--images", type=Path, help="images to pseudo-label: a folder or a CSV (default: the runs' own training images)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="the new file of answers")
    parser.add_argument("--tta", nargs="+", default=["none"], metavar="VIEW", help="views or presets (default: none)")
    parser.add_argument("--batch_size", type=positive, default=64, help="images a batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="decoding threads (default: one a core)")
    parser.add_argument(
        "--on_bad_image",
        choices=("skip", "partial", "error"),
        default="skip",
        help="unreadable image: no answer, and students leave it out, or stop; partial as skip, and takes what remains"
        " of truncated files (default: %(default)s)",
    )
    parser.add_argument("--id_column", default="ID", help="the images' column in a CSV (default: %(default)s)")
    asked = parser.parse_args(words)
    from ensemble import ensemble_file
    from infer import teacher

    ensemble_file.refuse_existing(asked.out)
    seen = views.expand(asked.tta)
    answers = teacher.answer(
        *(asked.runs, asked.images, seen, asked.id_column, asked.batch_size, asked.workers),
        on_bad_image=asked.on_bad_image,
    )
    teacher_file.write(asked.out, answers)
    folds = np.unique(answers.fold)
    print(f"wrote {asked.out}: {len(answers.ids)} answers for {len(folds)} folds, {len(np.unique(answers.ids))} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
