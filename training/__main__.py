"""`python -m training`: what can be done with runs after training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from config.errors import TandemError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training", description="What can be done with runs after training."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    page = commands.add_parser("report", help="write report.html about one or more finished runs")
    page.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    page.add_argument("--ensemble", type=Path, help="an ensemble file made of these runs")
    page.add_argument("--submission", type=Path, help="a submission made with that ensemble")
    page.add_argument("--out", type=Path, help="the page (default: report.html in the first run)")
    arguments = parser.parse_args(argv)
    try:
        from training import report  # after --help, which must not wait for these imports

        out = arguments.out or arguments.runs[0] / "report.html"
        report.write(arguments.runs, out, arguments.ensemble, arguments.submission)
    except TandemError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
