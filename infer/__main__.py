"""The command line: `python -m infer` answers images, `fit` fits an ensemble, `validate` checks a submission,
`teacher` writes what a student learns from.

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

from config.errors import ConfigError, DataError, TandemError
from infer import views

if TYPE_CHECKING:
    from infer.ensemble import Ensemble
    from infer.member import Member

# What a command needs is imported after its arguments are read: --help does not wait for SciPy and scikit-learn.
_ABOUT = (
    "Answer images with one model or an ensemble. Other commands: `infer fit`, `infer validate` and `infer teacher`"
    " (--help of each)."
)
_MEMBER = "checkpoint folder, .onnx or .mlpackage; PATH@RUNTIME chooses among torch, mlx, onnx, coreml, mil_reference"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {"fit": _fit, "validate": _validate, "teacher": _teacher}
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
    parser.add_argument(
        "--second_look",
        type=_share,
        metavar="P",
        help="look again, deskewed and with restored contrast, at images whose likeliest class is under P (documents)",
    )
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
            layout = submission.sample_layout(options.sample, runner.class_names, options.id_column)
        rows = submission.align(table.ids, layout, str(options.sample))
        path = submission.destination(options.out, runner.models, chosen.views, datetime.now())
        start = time.perf_counter()
        answers = list(runner.run(table.paths, options.batch_size, options.workers))
        probabilities = np.concatenate([part.probabilities for part in answers])
        if options.second_look:
            from infer.uncertain import second_look

            probabilities, again = second_look(runner, table.paths, probabilities, options.second_look)
            print(f"looked again at {again} images")
        seconds = time.perf_counter() - start
        names = runner.class_names
    probabilities = probabilities[rows]
    beside = submission.write(path, layout, probabilities, names)
    print(summary.text(probabilities, names, layout.ids))
    print(
        f"images: {len(rows)}; members: {len(chosen.members)}; views: {len(chosen.views)}; answered in {seconds:.1f} s"
    )
    print(f"wrote {path} and {beside}")


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
        help=f"what stands for the best checkpoint of a fold: a {_MEMBER}",
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


def _replacement(text: str) -> tuple[Path, Member]:
    fold, equals, artefact = text.partition("=")
    if not equals or not fold or not artefact:
        raise ConfigError(f"--replace {text!r}: expected RUN/fold_K=ARTEFACT")
    from infer.member import Member

    return Path(fold), Member.parse(artefact)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no probability; give one from 0 to 1")
    return share


if __name__ == "__main__":
    sys.exit(main())
