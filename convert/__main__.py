"""The command line: `python -m convert PATH --to onnx coreml`. Frameworks are imported only on use."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import convert
from config import renamed, streams
from config.errors import ConfigError, TandemError
from convert import command
from convert.verification.precision import pairs


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, and verify when asked to; returns the exit code. A `TandemError` becomes one line on stderr."""
    streams.escape()
    words = sys.argv[1:] if argv is None else argv
    try:
        renamed.refuse_flags(words)
        _run(command.parser().parse_args(words))
    except TandemError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; what was being written is taken away", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    if not options.to and options.distil is None:
        raise ConfigError("nothing to do; say --to onnx, --to coreml, or --distil DIR")
    kinds = pairs(options.to, options.precision) if options.to else []
    for target in options.to:
        convert.require(target)
    if options.distil is not None:
        from convert import distil

        distil.prepare(options.path, options.distil, options.student)
    if kinds:
        from convert import export  # after --help, which must not wait for it

        export.run(options, kinds)


if __name__ == "__main__":
    sys.exit(main())
