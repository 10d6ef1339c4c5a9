"""`--features FILE`: the pooled features of images, written as `.npz` or Parquet, and what is printed about them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from config.errors import ConfigError, DataError
from config.text import counted
from infer import features
from infer.commands import members

if TYPE_CHECKING:
    from ensemble.ensemble_file import Ensemble
    from infer.io.inputs import Inputs
    from infer.runner import Runner

HELP = (
    "write the pooled features before the classifier, for retrieval and linear probes: a new .npz or .parquet"
    " (one checkpoint, on torch or MLX)"
)
# Options that are for predictions only, and their defaults.
_OF_PREDICTIONS = {
    **{"sample": None, "positive": None, "retry_deskewed": 0.0, "resume": False, "shard": None},
    **{"format": "submission", "merge": None},
}


def run(chosen: Ensemble, options: argparse.Namespace) -> int:
    """Run `python -m infer --images ... --features FILE`; returns the exit code."""
    from infer.io.collect import collect
    from infer.runner import Runner

    check(chosen, options.features)
    inputs = collect(options.images, options.id_column)
    unfit = [name for name, usual in _OF_PREDICTIONS.items() if getattr(options, name) != usual]
    if unfit:
        raise ConfigError(f"--{unfit[0]}: is for predictions, not for --features; leave it out")
    if options.on_bad_image == "row":
        raise ConfigError("--on_bad_image row: --features leaves an unreadable image out; choose partial or error")
    with Runner(chosen, members.shared_options(options), options.in_memory) as runner:
        write(runner, inputs, options.features, options.on_bad_image, None, options.batch_size, options.workers)
    return 0


def check(chosen: Ensemble, path: Path) -> None:
    """Refuse, before a member is opened, what has no features and a file that cannot be written."""
    features.check(chosen)
    features.check_file(path)


def write(
    runner: Runner,
    inputs: Inputs,
    path: Path,
    on_bad_image: str,
    labels: Sequence[str] | None = None,
    batch_size: int | None = None,
    workers: int = 0,
) -> None:
    """Compute the features of `inputs`, with their class `labels` where known, and write them to `path`.

    Unreadable images are left out and reported, unless `on_bad_image` is `error`; `partial` takes what remains of
    truncated files. `DataError` where none can be read.
    """
    truncated: dict[int, str] = {}
    errors: dict[int, str] = {}
    rows = []
    stream = runner.stream_features(
        inputs,
        runner.grid(len(inputs), batch_size),
        workers,
        on_bad_image != "error",
        truncated if on_bad_image == "partial" else None,
    )
    for batch in stream:
        errors |= batch.errors
        rows.append(batch.features[[int(row) not in batch.errors for row in batch.rows]])
    readable = [row for row in range(len(inputs)) if row not in errors]
    if not readable:
        raise DataError(f"none of the {len(inputs)} images can be read; the first: {errors[min(errors)]}")
    vectors = np.concatenate(rows)
    names = None if labels is None else [labels[row] for row in readable]
    features.write(path, [inputs.ids[row] for row in readable], vectors, names)
    if truncated:
        print(f"truncated images: {len(truncated)}, taken as far as they go; the first: {truncated[min(truncated)]}")
    if errors:
        print(
            f"warning: left out: {len(errors)} of {counted(len(inputs), 'image')} that cannot be read; the first: "
            f"{errors[min(errors)]}",
            file=sys.stderr,
        )
    print(f"wrote {path}: features of {counted(len(readable), 'image')}, {vectors.shape[1]} each")
