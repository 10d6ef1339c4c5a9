"""`python -m infer`: predicts images with one model or an ensemble and writes the results. The options and their texts.

The work itself is `infer.job`; Python programs use `infer.load`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from config.errors import ConfigError, DataError
from config.program import entry
from config.program.parser import Parser, fraction, whole
from config.text import counted, duration
from infer.commands import INTERRUPTED, features, members

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ensemble.ensemble_file import Ensemble
    from infer.io.outputs import Results
    from infer.io.submission_writer import SubmissionWriter
    from infer.job import Done, Work

_ABOUT = (
    "Answer images with one model or an ensemble. Other commands: `infer evaluate`, `infer fit`, `infer oof`,"
    " `infer validate`, `infer adapt`, `infer serve` and `infer teacher` (--help of each)."
)
_IMAGES = (
    "a folder (with all folders in it), a CSV with IDs, a .txt with a file a line, a tar or zip archive,"
    " image files, or - for an image or an archive on standard input"
)
_OUT = (
    "the submission: a new .csv, or a folder to name it in; or probabilities: a new .jsonl, .parquet or .npz"
    " (several are written at once)"
)


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code; `TandemError`s are the caller's."""
    options = _parser().parse_args(words)
    chosen = members.chosen(options)
    try:
        return features.run(chosen, options) if options.features else _predict(chosen, options)
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on from here", file=sys.stderr)
        return INTERRUPTED


def _parser() -> Parser:
    parser = Parser("python -m infer", description=_ABOUT)
    entry.add_options(parser)
    members.add_members(parser)
    parser.add_argument("--images", nargs="+", required=True, metavar="PATH", help=_IMAGES)
    result = parser.add_mutually_exclusive_group(required=True)
    result.add_argument("--out", nargs="+", type=Path, metavar="PATH", help=_OUT)
    result.add_argument("--features", type=Path, metavar="FILE", help=features.HELP)
    parser.add_argument(
        "--format",
        choices=("submission", "wide"),
        default="submission",
        help="what a .csv holds (default: %(default)s)",
    )
    parser.add_argument("--sample", type=Path, help="sample submission whose columns, order and dtypes are followed")
    parser.add_argument(
        "--positive",
        metavar="CLASS",
        help="of two classes: write the probability of CLASS, in one column (default: where the sample has fractions"
        " in that column, of the class it is named after, else of the one that sorts last)",
    )
    parser.add_argument("--id_column", help="the images' column in tables and in the sample (default: found)")
    parser.add_argument("--target_column", default="target", help="the label column without --sample (%(default)s)")
    parser.add_argument(
        "--retry_deskewed",
        type=fraction,
        default=0.0,
        metavar="P",
        help="look again, deskewed and with restored contrast, at images whose likeliest class is under P (documents)",
    )
    parser.add_argument("--batch_size", type=whole(1), help="images a batch (default: by the members' image size)")
    parser.add_argument("--workers", type=whole(0), default=0, help="decoding threads (default: one a core)")
    parser.add_argument(
        "--on_bad_image",
        choices=("prior", "row", "error", "partial"),
        default="prior",
        help="unreadable image: the class prior as its prediction, a row without one, or stop; partial as prior, and"
        " takes what remains of truncated files (default: %(default)s)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with a run that stopped; the files will be the same"
    )
    parser.add_argument("--shard", metavar="I/N", help="answer part I (from 0) of N; who ends last writes the files")
    return parser


def _predict(chosen: Ensemble, options: argparse.Namespace) -> int:
    """Refuse all that can be refused before the first image is decoded, then predict."""
    from infer import adaptive
    from infer.io import outputs, shard, submission_writer
    from infer.io.collect import collect
    from infer.job import Work, predict_shard
    from infer.runner import Runner

    outputs.check(options.out, options.format)
    share = shard.parse(options.shard) if options.shard else shard.of_rank(os.environ)
    images = collect(options.images, options.id_column)
    if options.retry_deskewed and images.ascending:
        raise ConfigError(f"--retry_deskewed: {options.images[0]} can be read only once; unpack it and give the folder")
    unsure_only = options.tta == [members.ADAPTIVE]
    if unsure_only:
        adaptive.check(chosen)
    with Runner(chosen, members.shared_options(options), options.in_memory, adaptive=unsure_only) as runner:
        planned = submission_writer.plan(
            runner.class_names,
            runner.ensemble.aliases,
            images.ids,
            options.id_column,
            options.target_column,
            options.sample,
            options.positive,
        )
        if planned.layout.note:
            print(planned.layout.note)
        out = options.out[0]
        work = Work(
            runner,
            images,
            runner.grid(len(images), options.batch_size),
            share,
            out.with_name(f"{out.name}.part") if out.suffix else out / "unfinished",
            options.workers,
            options.on_bad_image != "error",
            options.on_bad_image == "partial",
            options.retry_deskewed,
        )
        with closing(_Progress()) as progress:
            done = predict_shard(work, options.resume or share.of > 1, progress.update)
        return _end(work, planned, options, done)


def _end(work: Work, planned: SubmissionWriter, options: argparse.Namespace, done: Done) -> int:
    from infer.io import outputs
    from infer.job import merged

    written: list[Path] = []
    with merged(work) as joined:
        if joined is None:
            print(f"shard {work.shard} is done: {counted(done.rows, 'image')}; the last shard to end writes the files")
            return 0
        results = _results(work, *joined, options.on_bad_image)
        if len(results.errors) < len(results.ids) or options.on_bad_image == "row":
            shown = results.errors if results.shows_errors else None
            for out in options.out:
                if outputs.is_submission(out, options.format):
                    written += planned.write(out, work.runner, results.probabilities, results.labels, shown)
                else:
                    outputs.write(out, results)
                    written.append(out)
    if not written:
        raise DataError(f"none of the {len(results.ids)} images can be read; the first: {results.errors[0]}")
    _report(work, results, done, written, options.on_bad_image)
    return 0


def _results(work: Work, probabilities: NDArray[np.float32], errors: Mapping[int, str], on_bad_image: str) -> Results:
    """The results, unreadable images as the option says; `DataError` for one that was skipped before the resume."""
    from infer.io.outputs import Results

    if errors and on_bad_image == "error":
        raise DataError(errors[min(errors)])
    prior, finish = work.runner.prior, work.runner.finish
    if on_bad_image != "row":
        prior.fill(probabilities, errors)
    labels = prior.labels(finish, probabilities, errors)
    shown = on_bad_image == "row" or bool(errors)
    return Results(work.inputs.ids, work.runner.class_names, probabilities, labels, errors, shown)


def _report(work: Work, results: Results, done: Done, written: Sequence[Path], on_bad_image: str) -> None:
    from infer.io import prior, summary

    ensemble = work.runner.ensemble
    good = [row for row in range(len(results.ids)) if row not in results.errors]
    if good:
        some = slice(None) if len(good) == len(results.ids) else good
        values, labels = results.probabilities[some], results.labels[some]
        print(summary.text(values, results.class_names, [results.ids[row] for row in good], labels=labels))
    if done.truncated:
        first = done.truncated[min(done.truncated)]
        print(f"truncated images: {len(done.truncated)}, predicted as far as they go; the first: {first}")
    if work.retry_deskewed:
        print(f"looked again at {counted(done.again, 'image')}")
    bad = f"; unreadable: {len(results.errors)}" if results.errors else ""
    print(
        f"images: {len(results.ids)}{bad}; members: {len(ensemble.members)}; views: {len(ensemble.views)}; "
        f"predicted in {duration(done.seconds)}"
    )
    if work.runner.described:
        print(f"computed by {'; '.join(dict.fromkeys(work.runner.described))}")
    if work.runner.adaptive and done.rows:
        every = len(ensemble.members) * len(ensemble.views)
        saved = 1 - done.passes / (done.rows * every)
        print(
            f"adaptive: {done.passes / done.rows:.2f} passes an image in place of {every}, {saved:.0%} saved; "
            + work.runner.clock.text(done.rows, len(ensemble.members), len(ensemble.views))
        )
    if results.errors:
        content = "no prediction" if on_bad_image == "row" else work.runner.prior.text
        print(f"warning: {prior.warning(results.errors, len(results.ids), content)}", file=sys.stderr)
    print(f"wrote {' and '.join(map(str, written))}")


class _Progress:
    """The progress in one line of a terminal; silent elsewhere."""

    def __init__(self) -> None:
        self._start, self._first = time.perf_counter(), -1
        self._shown = False

    def update(self, rows: int, total: int) -> None:
        """Show that `rows` of `total` images are predicted."""
        if self._first < 0:
            self._first = rows
        if not sys.stderr.isatty():
            return
        rate = (rows - self._first) / max(time.perf_counter() - self._start, 1e-9)
        print(f"\r{rows} of {total} images, {rate:.0f} a second ", end="", file=sys.stderr, flush=True)
        self._shown = True

    def close(self) -> None:
        """End the line."""
        if self._shown:
            print(file=sys.stderr)
