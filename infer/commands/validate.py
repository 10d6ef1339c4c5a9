"""`python -m infer validate`: its arguments, and what it prints. `infer.io.validation` checks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from config.errors import ConfigError, DataError
from config.program.parser import Parser

_ABOUT = "Check a submission against the sample: every fault is named; exit code 1 if any."


def main(words: Sequence[str]) -> int:
    """Print the faults of a submission; returns the exit code."""
    parser = Parser("python -m infer validate", description=_ABOUT)
    parser.add_argument("file", type=Path, help="the submission")
    parser.add_argument("--sample", type=Path, required=True, help="the competition's sample submission")
    parser.add_argument(
        "--id_column", default="ID", help="the ID column (default: %(default)s, else the sample's first)"
    )
    parser.add_argument("--train", type=Path, help="the training CSV whose labels a label file may hold (default: any)")
    parser.add_argument(
        "--positive",
        metavar="CLASS",
        help="the target column holds the probability of CLASS (default: where the sample has fractions there)",
    )
    parser.add_argument("--target_column", default="target", help="the label column of --train (default: %(default)s)")
    options = parser.parse_args(words)
    from data import csvfile
    from infer.io import validation

    column = options.target_column
    rows = csvfile.read(options.train, (column,)) if options.train else []
    labels = sorted({row.cells[column] for row in rows})
    if options.positive is not None and labels and options.positive not in labels:
        near = csvfile.near(options.positive, labels)
        raise ConfigError(f"--positive {options.positive!r}: is no label of {options.train}{near}")
    faults = validation.faults(
        options.file, options.sample, options.id_column, labels=labels, positive=options.positive is not None
    )
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if not faults:
        print(f"{options.file}: follows {options.sample}")
    return DataError.exit_code if faults else 0
