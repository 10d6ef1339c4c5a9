"""The command line: `python -m infer` answers images, `fit` fits an ensemble, `oof` answers out-of-fold images with
TTA views, `validate` checks a submission, `teacher` writes what a student learns from.

Errors of `config.errors` become one line on standard error and an exit code; everything else is a bug.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from config.errors import TandemError
from infer import command_fit, command_oof, command_validate, views

if TYPE_CHECKING:
    from infer.ensemble import Ensemble

# What a command needs is imported after its arguments are read: --help does not wait for SciPy and scikit-learn.
_ABOUT = (
    "Answer images with one model or an ensemble. Other commands: `infer fit`, `infer oof`, `infer validate` and"
    " `infer teacher` (--help of each)."
)
_MEMBER = "checkpoint folder, .onnx or .mlpackage; PATH@RUNTIME chooses among torch, mlx, onnx, coreml, mil_reference"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "fit": command_fit.main,
        "oof": command_oof.main,
        "validate": command_validate.main,
        "teacher": _teacher,
    }
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            if words and words[0] in commands:
                return commands[words[0]](words[1:])
            return _predict(words)
    except TandemError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _parser(command: str, about: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(f"python -m infer{command}", description=about, allow_abbrev=False)


def _predict(words: list[str]) -> int:
    parser = _parser("", _ABOUT)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--member", nargs="+", metavar="PATH", help=f"members of equal weight: each a {_MEMBER}")
    source.add_argument(
        "--ensemble", type=Path, metavar="FILE", help="an ensemble's YAML file, as `infer fit` writes it"
    )
    parser.add_argument("--images", type=Path, required=True, help="a folder of images, or a CSV with their IDs")
    parser.add_argument("--out", type=Path, required=True, help="the submission: a new .csv, or a folder to name it in")
    parser.add_argument("--tta", nargs="+", metavar="VIEW", help=f"presets ({', '.join(views.PRESETS)}) or views")
    parser.add_argument("--sample", type=Path, help="sample submission whose columns, order and dtypes are followed")
    parser.add_argument("--batch_size", type=_positive, default=64, help="images a batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="decoding threads (default: one a core)")
    parser.add_argument("--id_column", default="ID", help="the images' column in CSV files (default: %(default)s)")
    parser.add_argument("--target_column", default="target", help="the label column without --sample (%(default)s)")
    options = parser.parse_args(words)
    from infer import ensemble

    chosen = ensemble.read(options.ensemble) if options.ensemble else ensemble.of(options.member)
    if options.tta:
        chosen = chosen.model_copy(update={"views": views.expand(options.tta)})
    _submit(chosen, options)
    return 0


def _submit(chosen: Ensemble, options: argparse.Namespace) -> None:
    """Everything that can be refused is, before the first image is decoded."""
    from data import index
    from infer import submission, summary
    from infer.runner import Runner

    submission.prepare(options.out)
    table = index.load_test(options.images, id_column=options.id_column)
    with Runner(chosen) as runner:
        layout = submission.plain_layout(table.ids, options.id_column, options.target_column)
        if options.sample:
            layout = submission.sample_layout(
                options.sample, runner.class_names, options.id_column, aliases=chosen.aliases
            )
        rows = submission.align(table.ids, layout, str(options.sample))
        path = submission.destination(options.out, runner.models, chosen.views, datetime.now())
        start = time.perf_counter()
        answers = list(runner.run(table.paths, options.batch_size, options.workers))
        seconds = time.perf_counter() - start
        names = runner.class_names
    probabilities = np.concatenate([part.probabilities for part in answers])[rows]
    labels = runner.finish.labels(probabilities)
    beside = submission.write(path, layout, probabilities, names, labels=labels, aliases=chosen.aliases)
    print(summary.text(probabilities, names, layout.ids, labels=labels))
    print(
        f"images: {len(rows)}; members: {len(chosen.members)}; views: {len(chosen.views)}; answered in {seconds:.1f} s"
    )
    print(f"wrote {path} and {beside}")


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
    parser.add_argument("--batch_size", type=_positive, default=64, help="images a batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="decoding threads (default: one a core)")
    parser.add_argument("--id_column", default="ID", help="the images' column in a CSV (default: %(default)s)")
    asked = parser.parse_args(words)
    from infer import ensemble, teacher

    ensemble.refuse_existing(asked.out)
    seen = views.expand(asked.tta)
    answers = teacher.answer(asked.runs, asked.images, seen, asked.id_column, asked.batch_size, asked.workers)
    teacher.write(asked.out, answers)
    folds = np.unique(answers.fold)
    print(f"wrote {asked.out}: {len(answers.ids)} answers for {len(folds)} folds, {len(np.unique(answers.ids))} images")
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
