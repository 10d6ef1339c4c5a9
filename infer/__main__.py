"""The command line: `python -m infer` answers images, `fit` fits an ensemble, `validate` checks a submission,
`teacher` writes what a student learns from.

Errors of `config.errors` become one line on standard error and an exit code; everything else is a bug.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from config.errors import ConfigError, DataError, TandemError
from infer import predict, views

if TYPE_CHECKING:
    from infer.member import Member

# What a command needs is imported after its arguments are read: --help does not wait for SciPy and scikit-learn.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {"fit": _fit, "validate": _validate, "teacher": _teacher, "adapt": _adapt, "serve": _serve}
    try:
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


def _fit(words: list[str]) -> int:
    parser = _parser(" fit", "Fit an ensemble's weights and temperatures on the out-of-fold answers of finished runs.")
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folder with fold_K/best and fold_K/oof.npz"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the ensemble's new YAML file")
    parser.add_argument(
        *("--tta", "--views"),
        nargs="+",
        default=["none"],
        metavar="VIEW",
        help=f"what each member will see: presets ({', '.join(views.PRESETS)}) or views",
    )
    parser.add_argument(
        "--replace",
        nargs="+",
        default=[],
        metavar="RUN/fold_K=ARTEFACT",
        help=f"what stands for the best checkpoint of a fold: a {predict.MEMBER}",
    )
    options = parser.parse_args(words)
    from infer import ensemble, fit

    ensemble.refuse_existing(options.out)
    fitted = fit.fit(options.runs, views.expand(options.tta), dict(map(_replacement, options.replace)))
    ensemble.write(options.out, fitted.ensemble)
    print(fit.report(fitted))
    print(f"wrote {options.out}: {len(fitted.ensemble.members)} members")
    return 0


def _validate(words: list[str]) -> int:
    parser = _parser(" validate", "Check a submission against the sample: every fault is named; exit code 1 if any.")
    parser.add_argument("file", type=Path, help="the submission")
    parser.add_argument("--sample", type=Path, required=True, help="the competition's sample submission")
    parser.add_argument(
        "--id_column", default="ID", help="the ID column (default: %(default)s, else the sample's first)"
    )
    options = parser.parse_args(words)
    from infer import validate

    faults = validate.faults(options.file, options.sample, options.id_column)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if not faults:
        print(f"{options.file}: follows {options.sample}")
    return DataError.exit_code if faults else 0


def _adapt(words: list[str]) -> int:
    from infer import adapt

    return adapt.main(words)


def _serve(words: list[str]) -> int:
    from infer import serve

    return serve.main(words)


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
    parser.add_argument("--batch_size", type=predict.positive, default=64, help="images a batch (default: %(default)s)")
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


def _replacement(text: str) -> tuple[Path, Member]:
    fold, equals, artefact = text.partition("=")
    if not equals or not fold or not artefact:
        raise ConfigError(f"--replace {text!r}: expected RUN/fold_K=ARTEFACT")
    from infer.member import Member

    return Path(fold), Member.parse(artefact)


if __name__ == "__main__":
    sys.exit(main())
