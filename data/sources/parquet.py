"""Parquet files as Hugging Face's datasets writes them: a column of encoded images and a label column."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from config.errors import BackendUnavailable, DataError
from config.sections.data import Data
from config.text import counted
from data.sources import columns, packed, splits
from data.sources.listing import Listing, Sample

_BATCH = 256  # rows that are unpacked at a time


def read(root: Path, files: Sequence[str], data: Data) -> Listing:
    """The samples of Parquet files below `root`, unpacked once into the user's cache folder.

    The names of the files (train-00000-of-00002.parquet) or of their folders are their splits. Raises
    `BackendUnavailable` where pyarrow is not installed, and `DataError` for files without images.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise BackendUnavailable(f'{root}: Parquet files need pyarrow; run: pip install -e ".[parquet]"') from None
    samples: list[Sample] = []
    names: tuple[str, ...] = ()
    image = target = ""
    for file in files:
        path = root / file
        image, target, names = _columns(path, data)
        rows = functools.partial(_rows, path, image, target)
        stored = packed.stored(path, f"parquet {image} {target}", lambda rows=rows: (rows(), {}))  # type: ignore[misc]
        split = splits.of_file(file)
        for row, (name, label, _, _) in enumerate(stored.rows):
            if names and label is not None:
                label = names[int(label)] if int(label) >= 0 else None
            samples.append(Sample(f"{file}/{name}" if len(files) > 1 else name, stored.path(row), label, split))
    origin = f"{counted(len(files), 'Parquet file')}, images in column {image!r}, labels in column {target!r}"
    return Listing(root, origin, samples, class_names=names, target_column=target or "target")


def _columns(path: Path, data: Data) -> tuple[str, str, tuple[str, ...]]:
    """The columns of images and labels, and the class names of the schema's metadata, if any."""
    from pyarrow import ArrowInvalid, parquet, types

    try:
        schema = parquet.read_schema(path)
    except (ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: is not a Parquet file that can be read ({error}); download it again") from error
    images = [f.name for f in schema if types.is_struct(f.type) and any(inner.name == "bytes" for inner in f.type)]
    images += [field.name for field in schema if types.is_binary(field.type) or types.is_large_binary(field.type)]
    if not images:
        raise DataError(
            f"{path}: has no column of images (a struct of bytes and path, or bytes), its columns are "
            f"{', '.join(schema.names)}; set data.root to the folder of the images, and data.table to a CSV"
        )
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    named = {
        name: tuple(feature["names"])
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and "names" in feature
    }
    others = [name for name in schema.names if name not in images]
    target = data.target_column or _target(path, others, list(named))
    if target and target not in others:
        raise DataError(
            f"{path}: no column {target!r}, its columns are {', '.join(schema.names)}; set data.target_column"
        )
    return images[0], target, named.get(target, ())


def _target(path: Path, others: Sequence[str], named: Sequence[str]) -> str:
    """The label column: the only one that is a class label, else by its usual name, else the only other one."""
    if len(named) == 1:
        return named[0]
    usual = [name for name in columns.TARGETS if name in others]
    if usual or len(others) == 1:
        return [*usual, *others][0]
    if len(others) > 1 or named:
        raise DataError(
            f"{path}: several of its columns could be the label: {', '.join(named or others)}; set data.target_column"
        )
    return ""


def _rows(path: Path, image: str, target: str) -> Iterable[tuple[str, str | None, bytes]]:
    from pyarrow import parquet

    wanted = [image, target] if target else [image]
    number = 0
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH, columns=wanted):
            labels = batch.column(target).to_pylist() if target else [None] * len(batch)
            for cell, label in zip(batch.column(image).to_pylist(), labels, strict=True):
                content = cell["bytes"] if isinstance(cell, dict) else cell
                if content is None:
                    raise DataError(f"{path}: row {number} holds no image bytes; download the data set with its images")
                yield f"{number:06d}", None if label is None else str(label), content
                number += 1
