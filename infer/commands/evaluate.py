"""`python -m infer evaluate`: its arguments, and what it prints. `evaluation` computes the scores."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from config import load
from config.program.parser import Parser, whole
from config.text import counted, duration, plain
from infer.commands import INTERRUPTED, features, members

if TYPE_CHECKING:
    from config.sections.data import Data
    from ensemble.ensemble_file import Ensemble
    from infer.evaluation.scoring import Evaluation

_ABOUT = (
    "Score one model or an ensemble on labelled images: accuracy, macro-F1, log loss, calibration, each class. Writes"
    " metrics.json, confusion.csv, the predictions, plots and a report page."
)
_DATA = (
    "--data.root DIR names the data set: a folder, a table, Parquet, shards or arrays, as for a training. Other"
    " settings of the data may follow, such as --data.table, --data.target_column, --data.label_pattern or"
    " --data.classes; docs/reference/data_layouts.md has them."
)
_CLASSES_PRINTED = 20


def main(words: Sequence[str]) -> int:
    """Score as the arguments say, write the files and the page; returns the exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    if not any(word.partition("=")[0] == "--data.root" for word in rest):
        parser.error("the following arguments are required: --data.root")
    data = load.parse(rest, "python -m infer evaluate").data
    from infer import adaptive
    from infer.evaluation import files

    adaptively = options.tta == [members.ADAPTIVE]
    chosen = members.chosen(options)
    if adaptively:
        adaptive.check(chosen)
    if options.features:
        features.check(chosen, options.features)
    out = options.out or Path(datetime.now().strftime("evaluation-%Y%m%d-%H%M%S"))
    files.prepare(out)
    try:
        return _evaluate(chosen, data, options, out, adaptively)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    finally:
        if not any(out.iterdir()):
            out.rmdir()


def _parser() -> Parser:
    parser = Parser(
        "python -m infer evaluate",
        description=_ABOUT,
        epilog=_DATA,
        passes=lambda flag: flag.startswith("--data."),
    )
    members.add_members(parser)
    parser.add_argument(
        "--split",
        choices=("train", "val", "test", "all"),
        help="the data set's own split; all is training and validation (default: test where it has labels, else val,"
        " else all)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="a new folder for the files (default: evaluation-DATE-TIME)"
    )
    parser.add_argument("--features", type=Path, metavar="FILE", help=f"also {features.HELP}")
    parser.add_argument(
        "--on_bad_image",
        choices=("skip", "partial", "error"),
        default="skip",
        help="unreadable image: leave it out and count it, or stop; partial as skip, and takes what remains of"
        " truncated files (default: %(default)s)",
    )
    parser.add_argument("--batch_size", type=whole(1), help="images a batch (default: by the members' image size)")
    parser.add_argument("--workers", type=whole(0), default=0, help="decoding threads (default: one a core)")
    return parser


def _evaluate(chosen: Ensemble, data: Data, options: argparse.Namespace, out: Path, adaptively: bool) -> int:
    from infer.evaluation import files, report, scoring
    from infer.runner import Runner

    if options.on_bad_image != "error":  # a table's image that is missing is left out, too
        data = data.model_copy(update={"on_bad_image": "skip"})
    labelled = scoring.labelled(data, options.split)
    print(
        f"data: {labelled.listing.origin}: {counted(len(labelled.listing.samples), 'labelled image')}, "
        f"split {labelled.split}"
    )
    with Runner(chosen, members.shared_options(options), options.in_memory, adaptive=adaptively) as runner:
        settings = options.on_bad_image, options.batch_size, options.workers
        scored = scoring.evaluate(runner, labelled, None, *settings)
        print(text(scored))
        if runner.described:
            print(f"computed by {'; '.join(dict.fromkeys(runner.described))}")
        written = [*files.write(out, scored), *report.write(scored, out)]
        print(f"wrote {out}: {', '.join(path.relative_to(out).as_posix() for path in written)}")
        if options.features:
            inputs, targets = scoring.inputs_of(labelled, runner.class_names, runner.ensemble.aliases)
            labels = [runner.class_names[number] for number in targets]
            features.write(runner, inputs, options.features, options.on_bad_image, labels, *settings[1:])
    return 0


def text(evaluation: Evaluation) -> str:
    """The scores as lines for a terminal; those of each class where they are few."""
    span = {name: f"{i.value:.4f} ({i.low:.4f} to {i.high:.4f})" for name, i in evaluation.intervals.items()}
    lines = [*evaluation.notes]
    if evaluation.split in ("train", "all"):
        lines.append("note: this is no test split; members score too high on images that they were trained on")
    if evaluation.truncated:
        first = evaluation.truncated[0]
        lines.append(f"truncated images: {len(evaluation.truncated)}, predicted as far as they go; the first: {first}")
    if evaluation.unreadable:
        first = next(iter(evaluation.unreadable.values()))
        unreadable = counted(len(evaluation.unreadable), "unreadable image")
        lines.append(f"warning: {unreadable} left out of the scores; the first: {first}")
    lines.append(f"{'accuracy':<12}{span['accuracy']}   95% interval in brackets")
    if evaluation.top5 is not None:
        lines.append(f"{'top-5':<12}{evaluation.top5:.4f}")
    lines += [f"{'macro-F1':<12}{span['macro_f1']}", f"{'log loss':<12}{span['log_loss']}"]
    verdict = "too sure" if evaluation.temperature > 1 else "too unsure"
    best = f"a temperature of {evaluation.temperature:.2f} would fit these images best"
    lines.append(f"{'ECE':<12}{evaluation.ece:.4f}   {best}: the probabilities are {verdict}")
    lines.append(f"{'Brier':<12}{evaluation.brier:.4f}")
    lines += [f"{m.name}: accuracy {m.accuracy:.4f}, macro-F1 {m.macro_f1:.4f}" for m in evaluation.members]
    if len(evaluation.per_class) <= _CLASSES_PRINTED:
        width = max(5, *(len(plain(c.name)) for c in evaluation.per_class))
        lines.append(f"\n{'class':<{width}}  images  precision  recall      F1")
        for c in evaluation.per_class:
            lines.append(f"{plain(c.name):<{width}}  {c.images:6d}     {c.precision:.4f}  {c.recall:.4f}  {c.f1:.4f}")
        lines.append("")
    lines.append(
        f"images: {len(evaluation.ids)}; views: {len(evaluation.views)}; predicted in {duration(evaluation.seconds)}"
    )
    return "\n".join(lines)
