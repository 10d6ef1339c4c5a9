"""`python -m infer oof`: its arguments, and what it prints. `views_oof` computes the predictions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from config.program.parser import Parser, whole
from ensemble import views
from infer.commands import INTERRUPTED

_ABOUT = (
    "Answer each fold's own validation images with test-time augmentation, so that `infer fit --tta` calibrates what"
    " the views will give. What is there already is left as it is."
)


def main(words: Sequence[str]) -> int:
    """Predict the folds of the runs; returns the exit code."""
    parser = Parser("python -m infer oof", description=_ABOUT)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder with finished folds")
    parser.add_argument(
        "--tta", nargs="+", required=True, metavar="VIEW", help=f"presets ({', '.join(views.PRESETS)}) or views"
    )
    parser.add_argument(
        "--merge",
        choices=("probabilities", "logits", "geometric", "max"),
        default="probabilities",
        help="how the views merge, the same as for `infer fit` (default: %(default)s)",
    )
    parser.add_argument("--batch_size", type=whole(1), default=64, help="images a batch (default: %(default)s)")
    parser.add_argument("--workers", type=whole(0), default=0, help="decoding threads (default: one a core)")
    options = parser.parse_args(words)
    from infer import views_oof

    shown = views.expand(options.tta)
    try:
        for run in options.runs:
            for line in views_oof.predict(run, shown, options.merge, options.batch_size, options.workers):
                print(line, flush=True)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the next fold", file=sys.stderr)
        return INTERRUPTED
    return 0
