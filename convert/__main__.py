"""The command line: `python -m convert CHECKPOINT --to onnx coreml`. Frameworks are imported only on use."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import convert
from backends.contract import Weights
from config.errors import ConvertError, TandemError
from convert.place import refuse_existing
from infer import predictors
from infer.predictors.checkpoint import read_card
from models import manifest
from models import weights as weights_file
from models.card import Card

if TYPE_CHECKING:
    from data.index import Table

PRECISIONS = ("fp32", "fp16")
_MB = 1e6


class Job(NamedTuple):
    """One artefact to write."""

    target: str
    precision: str
    out: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, and verify when asked to; returns the exit code. A `TandemError` becomes one line on stderr."""
    options = _parser().parse_args(argv)
    try:
        _run(options)
    except TandemError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def names(checkpoint: Path, targets: Sequence[str], precisions: Sequence[str], out: Path | None) -> list[Job]:
    """What is written where: `fold_0/best` becomes `fold_0_best.onnx`, `fold_0_best_fp16.mlpackage`, ...

    Beside the checkpoint's folder, or in the folder `out`.
    """
    whole = checkpoint.resolve()
    stem = f"{whole.parent.name}_{whole.name}" if whole.parent.name.startswith("fold_") else whole.name
    folder = out or checkpoint.parent if checkpoint.name else whole.parent
    return [
        Job(t, p, folder / f"{stem}{'' if p == 'fp32' else f'_{p}'}{convert.TARGETS[t].suffix}")
        for t in targets
        for p in precisions
    ]


def read(checkpoint: Path) -> tuple[Weights, Card]:
    """The weights of a checkpoint folder, its EMA where it has one, and its card; every file is checked first."""
    runtime = predictors.choose(checkpoint)
    if runtime not in ("torch", "mlx"):
        what = "the numpy engine's linear model" if runtime == "numpy" else "an artefact already"
        raise ConvertError(f"{checkpoint}: is {what}; only checkpoints of a torch or MLX run are converted")
    card = read_card(checkpoint)
    manifest.verify(checkpoint)
    averaged = checkpoint / weights_file.EMA_FILE
    arrays, _ = weights_file.read(averaged if averaged.exists() else checkpoint / weights_file.MODEL_FILE)
    return arrays, card


def _run(options: argparse.Namespace) -> None:
    weights, card = read(options.checkpoint)
    jobs = names(options.checkpoint, options.to, options.precision, options.out)
    modules = {target: convert.load(target) for target in options.to}
    for job in jobs:
        refuse_existing(job.out, options.overwrite)
    images = None
    if options.verify:
        from convert import verify

        images = verify.table(options.verify, card)
    for job in jobs:
        path = modules[job.target].export(weights, card, job.out, precision=job.precision, overwrite=options.overwrite)
        print(f"wrote {path} ({job.precision}, {_size(path) / _MB:.1f} MB)")
    if images is not None:
        _verify(weights, card, jobs, images)


def _verify(weights: Weights, card: Card, jobs: Sequence[Job], images: Table) -> None:
    from convert import report, verify

    comparisons = verify.compare(weights, card, [verify.Artefact(job.out, job.precision) for job in jobs], images)
    for comparison in comparisons:
        print(report.line(comparison))
    print(f"wrote {report.write(jobs[0].out.parent, comparisons)}")
    failed = [f"{c.artefact} on {c.runtime}: {', '.join(c.faults)}" for c in comparisons if c.faults]
    if failed:
        raise verify.VerificationFailed("; ".join(failed))


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convert",
        description="Convert a checkpoint of either engine to ONNX and Core ML, and prove that it answers alike.",
        epilog="Exit codes: 0 done, 1 an error, 2 a wrong command line, 4 an artefact outside the limits of --verify.",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint folder, such as RUN/fold_0/best")
    add("--to", nargs="+", choices=tuple(convert.TARGETS), required=True, help="the formats to write")
    add(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        default=["fp32"],
        help="fp32 (the default) answers as the checkpoint does; fp16 is half the size and what the Neural Engine runs",
    )
    add("--out", type=Path, metavar="DIR", help="the folder to write into (default: the one that CHECKPOINT lies in)")
    add("--overwrite", action="store_true", help="replace artefacts of the same name")
    add(
        "--verify",
        type=Path,
        metavar="IMAGES",
        help="compare every artefact with the checkpoint on these images: a folder, class folders or a CSV; "
        "writes verify.json and verify.md beside the artefacts",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
