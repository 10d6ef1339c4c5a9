"""The command line: `python -m convert PATH --to onnx coreml`. Frameworks are imported only on use."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import convert
from config.errors import ConfigError
from config.program import entry
from convert import command
from convert.verification.precision import pairs


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, and verify when asked to; returns the exit code. A `TandemError` becomes one line on stderr."""
    return entry.run(_run, argv, "python -m convert")


def _run(words: list[str]) -> int:
    options = command.parser().parse_args(words)
    if not options.to and options.distil is None:
        raise ConfigError("nothing to do; say --to onnx, --to coreml, or --distil DIR")
    kinds = pairs(options.to, options.precision) if options.to else []
    for target in options.to:
        convert.require(target)
    try:
        if options.distil is not None:
            from convert import distil

            distil.prepare(options.path, options.distil, options.student)
        if kinds:
            from convert import export  # after --help, which must not wait for it

            export.run(options, kinds)
    except KeyboardInterrupt:
        print("stopped; what was being written is taken away", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
