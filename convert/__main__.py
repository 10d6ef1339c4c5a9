"""The command line: `python -m convert PATH --to onnx coreml`. Frameworks are imported only on use."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import convert
from config import renamed, streams
from config.errors import ConfigError, TandemError
from convert import command
from convert.place import refuse_existing
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
    if any(number < 1 for number in options.batch):
        raise ConfigError(f"--batch {' '.join(map(str, options.batch))}: batches hold at least one image")
    kinds = pairs(options.to, options.precision) if options.to else []
    for target in options.to:
        convert.require(target)
    if options.distil is not None:
        from convert import distil

        distil.prepare(options.path, options.distil, options.student)
    if kinds:
        _convert(options, kinds)


def _convert(options: argparse.Namespace, kinds: Sequence[tuple[str, str]]) -> None:
    from convert import export, source  # after --help, which must not wait for them

    sources = source.read(options.path)
    if options.single_input:
        sources = [source.one_image(one) for one in sources]
        for one in (one for one in sources if one.resized):
            size, sizes = one.card.preprocessing.size, ", ".join(str(prep.size) for prep in one.resized)
            print(
                f"{one.path}: its members' pixels ({sizes}) are resized from the one image of {size}, not from the "
                "file: near the runner's, not equal"
            )
    jobs = [export.names(one, kinds, options.out) for one in sources]
    for job in (job for some in jobs for job in some):
        refuse_existing(job.out, options.overwrite)
    for target, precision in dict.fromkeys((t, p) for t in options.to for p in options.precision):
        if (target, precision) not in kinds:
            print(f"{target} has no {precision}: left out")
    failed = [fault for one, some in zip(sources, jobs, strict=True) for fault in export.export(one, some, options)]
    if failed:
        from convert.verification.verify import VerificationFailed

        raise VerificationFailed("; ".join(failed))


if __name__ == "__main__":
    sys.exit(main())
