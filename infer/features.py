"""Pooled features before the classifier, for retrieval and linear probes: which members give them, and their files.

They are of one checkpoint on torch or MLX. The runner computes them (`Runner.features`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends import installed
from config.errors import BackendUnavailable, ConfigError
from config.places import atomic_path
from ensemble.ensemble_file import Ensemble
from infer import runtimes

WITH_FEATURES = ("torch", "mlx")
SUFFIXES = (".npz", ".parquet")


class Pooled(NamedTuple):
    """The features of one batch: `rows` int64 `[n]` are the images' positions in the input, `features` float32
    `[n, D]`. Of an image that `errors` names by row they mean nothing."""

    rows: NDArray[np.int64]
    features: NDArray[np.float32]
    errors: Mapping[int, str]


def check(ensemble: Ensemble) -> None:
    """`ConfigError` unless it is one member, whose features can be had, and sees one view as it is."""
    if len(ensemble.members) > 1:
        raise ConfigError(
            f"features are those of one network, and there are {len(ensemble.members)} members; name one of them"
        )
    if ensemble.views != ("original",):
        raise ConfigError(f"features are those of one view, and there are {', '.join(ensemble.views)}; leave out --tta")
    (member,) = ensemble.members
    runtime = runtimes.choose(member.path, member.runtime)
    if runtime not in WITH_FEATURES:
        raise ConfigError(
            f"{member}: {runtime} gives no features; take the checkpoint, on {' or '.join(WITH_FEATURES)}"
        )


def check_file(path: Path) -> None:
    """Refuse an unknown suffix, an existing file, a missing library or folder before any prediction."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--features {path}: give a name that ends in {' or '.join(SUFFIXES)}")
    if path.suffix == ".parquet" and not installed("pyarrow"):
        raise BackendUnavailable(
            f'--features {path}: needs pyarrow, not installed here; run: pip install -e ".[parquet]"'
        )
    if path.exists():
        raise ConfigError(f"{path}: exists already and is not overwritten; give another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--features {path}: {path.parent} cannot be made a folder ({error.strerror})") from error


def write(path: Path, ids: Sequence[str], features: NDArray[np.float32], labels: Sequence[str] | None = None) -> None:
    """Write float32 `[N, D]` to an `.npz` (`ids`, `features`, `labels` where known) or a Parquet file (`id`,
    `features`: a list of D float32, `label`), atomically; `ConfigError` when it exists already."""
    with atomic_path(path) as unfinished:
        if path.suffix == ".parquet":
            _write_parquet(unfinished, ids, features, labels)
        else:
            arrays = {} if labels is None else {"labels": np.array(labels, dtype=np.str_)}
            with unfinished.open("wb") as file:
                np.savez(file, allow_pickle=False, ids=np.array(ids, np.str_), features=features, **arrays)
        if path.exists():
            raise ConfigError(f"{path}: exists already and is not overwritten; give another name")


def _write_parquet(path: Path, ids: Sequence[str], features: NDArray[np.float32], labels: Sequence[str] | None) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    flat = pa.array(np.ascontiguousarray(features).reshape(-1), pa.float32())
    columns = {
        "id": pa.array(ids, pa.string()),
        "features": pa.FixedSizeListArray.from_arrays(flat, features.shape[1]),
    }
    if labels is not None:
        columns["label"] = pa.array(labels, pa.string())
    parquet.write_table(pa.table(columns), path)
