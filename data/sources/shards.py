"""WebDataset shards: tar files in which the files of one key, such as 0001.jpg and 0001.cls, are one sample."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from config.errors import DataError
from config.sections.data import Data
from data import names
from data.decode.formats import SUFFIXES
from data.sources import columns, splits
from data.sources.listing import Listing, Sample
from data.sources.packed import Part

_LABELS = ("cls", "label", "class", "json")
_LABEL_BYTES = 2**20


def read(root: Path, files: Sequence[str], data: Data) -> Listing:
    """The samples of the shards below `root`, in the order of the shards and of their files.

    Images stay where they are in the shards. A label is the text of KEY.cls, or a field of KEY.json. Raises `DataError`
    for a damaged shard, or where no image has a label.
    """
    samples = [sample for file in files for sample in _samples(root, file, data)]
    if not any(sample.label is not None for sample in samples):
        inside = f"{len(samples)} images and no KEY.cls or KEY.json beside them" if samples else "no images"
        raise DataError(f"{root}: {files[0]} holds {inside}; unpack an archive of class folders first")
    samples = _named(root, samples)
    return Listing(root, f"{len(files)} WebDataset shards", samples)


def _samples(root: Path, file: str, data: Data) -> Iterable[Sample]:
    path, split = root / file, splits.of_file(file)
    found: dict[str, tuple[Part | None, str | None]] = {}
    try:
        with tarfile.open(path, "r:") as opened:
            for member in opened:
                folder, slash, name = member.name.removeprefix("./").rpartition("/")
                key, _, suffix = name.partition(".")
                if not member.isreg() or not key or key.startswith("."):
                    continue
                key = folder + slash + key
                image, label = found.get(key, (None, None))
                if f".{suffix.rpartition('.')[2].lower()}" in SUFFIXES:
                    image = Part(path, member.name, member.offset_data, member.size)
                elif suffix.lower() in _LABELS and label is None:
                    label = _label(path, opened, member, data)
                found[key] = image, label
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path}: is a damaged or packed shard ({error}); download it again, or unpack it") from error
    for key, (image, label) in found.items():
        if image is not None:
            yield Sample(names.of_path(f"{file}/{key}"), image, label, split)


def _label(path: Path, opened: tarfile.TarFile, member: tarfile.TarInfo, data: Data) -> str | None:
    """The label in a file of a shard; None for a JSON object that has none."""
    stream = opened.extractfile(member)
    text = stream.read(_LABEL_BYTES).decode("utf-8", "replace") if stream else ""
    if not member.name.endswith(".json"):
        return names.normal(text) or None
    try:
        record = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: {member.name} is not a JSON object ({error}); write the shard again") from error
    wanted = [data.target_column] if data.target_column else columns.TARGETS
    value = next((record[name] for name in wanted if name in record), None)
    return None if value is None else names.normal(str(value))


def _named(root: Path, samples: Sequence[Sample]) -> list[Sample]:
    """The samples with class names in place of numbers, where a list of names lies beside the shards."""
    for name in ("classnames.txt", "classes.txt", "labels.txt"):
        if (root / name).is_file():
            lines = [names.normal(line) for line in (root / name).read_text("utf-8").splitlines() if line.strip()]
            numbers = {sample.label for sample in samples if sample.label is not None}
            if all(number.isdigit() and int(number) < len(lines) for number in numbers):
                return [s if s.label is None else s._replace(label=lines[int(s.label)]) for s in samples]
    return list(samples)
