"""WebDataset shards: tar files in which the files of one key, such as 0001.jpg and 0001.cls, are one sample."""

from __future__ import annotations

import json
import posixpath
import tarfile
import threading
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from config.errors import DataError
from config.places import atomic_write
from config.sections.data import Data
from config.text import counted
from data import names
from data.decode.formats import SUFFIXES
from data.progress_bar import bar
from data.sources import columns, remote, splits
from data.sources.listing import Listing, Sample
from data.sources.packed import Part
from data.streaming import shard_cache, transfer
from data.streaming.shard_cache import Index, Row

_LABELS = ("cls", "label", "class", "json")
_LABEL_BYTES = 2**20
_NAMES = ("classnames.txt", "classes.txt", "labels.txt")
_DAMAGED = (tarfile.TarError, OSError, EOFError)
_OTHERS = {".parquet", ".npz", ".csv", ".gz", ".tgz", ".zip"}
_AT_A_TIME = 4  # shards that are indexed at one time


def read(root: Path, files: Sequence[str], data: Data) -> Listing:
    """The samples of the shards below `root`, in the order of the shards and of their files.

    Images stay where they are in the shards. A label is the text of KEY.cls, or a field of KEY.json. Raises `DataError`
    for a damaged shard, or where no image has a label.
    """
    rows: dict[str, list[Row]] = {}
    for file in files:
        try:
            with tarfile.open(root / file, "r:") as opened:
                rows[file] = _rows(root / file, opened, data)
        except _DAMAGED as error:
            raise _damaged(root / file, error) from error
    classes = next((root / name for name in _NAMES if (root / name).is_file()), None)
    return _listing(root, root / files[0], rows, classes.read_text("utf-8") if classes else "")


def read_remote(address: str, data: Data) -> Listing:
    """The same of shards at a URL, such as `s3://bucket/{000..099}.tar` or a folder of shards, which stay there.

    A shard without SHARD.tar.index.json beside it is read through once; its index is kept in the user's cache folder.
    Raises `DataError` as `read`, and where a shard cannot be fetched.
    """
    urls = remote.expand(address)
    kinds = {posixpath.splitext(url.partition("?")[0])[1].lower() for url in urls}
    if kinds & _OTHERS:
        raise DataError(f"{address}: data.streaming reads tar shards (WebDataset) alone; set it to false")
    if kinds != {".tar"}:
        urls = [file for url in urls for file in transfer.tar_files(url)]
    root, paths = shard_cache.paths_of(urls, data.target_column or "")
    known = {url: shard_cache.find(paths[url], url) for url in urls}
    unknown = {url: paths[url] for url, index in known.items() if index is None}
    if unknown:
        shards = counted(len(unknown), "shard")
        print(f"data: indexing {shards}, each of which is read once; the index is kept in {root}")
        known |= _indexed(unknown, data)
    rows = {paths[url].relative_to(root).as_posix(): index.rows for url, index in known.items() if index}
    folder, cached = urls[0].partition("?")[0].rpartition("/")[0], root / _NAMES[0]
    if not cached.exists():  # an empty one where the folder has none, so that it is looked for once
        class_names = (transfer.small(f"{folder}/{name}") for name in _NAMES)
        atomic_write(cached, next(filter(None, class_names), b""))
    return _listing(root, urls[0], rows, cached.read_text("utf-8"))


def _listing(root: Path, first: Path | str, rows: Mapping[str, Sequence[Row]], classes: str) -> Listing:
    """The samples of the shards `rows`, by their paths below `root`."""
    samples = [
        Sample(names.of_path(f"{file}/{key}"), Part(shard, name, offset, size), label, split)
        for file, images in rows.items()
        for shard, split in [(root / file, splits.of_file(file))]
        for key, name, offset, size, label in images
    ]
    if not any(sample.label is not None for sample in samples):
        inside = f"{counted(len(samples), 'image')} and no KEY.cls or KEY.json beside them" if samples else "no images"
        raise DataError(f"{first}: holds {inside}; unpack an archive of class folders first")
    cells = [file for file, images in rows.items() for _ in images]
    return Listing(
        root, counted(len(rows), "WebDataset shard"), _with_class_names(classes, samples), columns={"shard": cells}
    )


def _rows(shard: Path | str, opened: tarfile.TarFile, data: Data) -> list[Row]:
    """The images of an open shard, with their labels."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str | None] = {}
    for member in opened:
        folder, slash, name = member.name.removeprefix("./").rpartition("/")
        key, _, suffix = name.partition(".")
        if not member.isreg() or not key or key.startswith("."):
            continue
        key = folder + slash + key
        if f".{suffix.rpartition('.')[2].lower()}" in SUFFIXES:
            images[key] = member.name, member.offset_data, member.size
        elif suffix.lower() in _LABELS and labels.get(key) is None:
            labels[key] = _label(shard, opened, member, data)
    return [(key, *image, labels.get(key)) for key, image in images.items()]


def _damaged(shard: Path | str, error: Exception) -> DataError:
    return DataError(f"{shard}: is a damaged or packed shard ({error}); download it again, or unpack it")


class _Stream:
    """The bytes of a URL as a file that is read once; how many there were, and their CRC-32."""

    def __init__(self, address: str, stopped: threading.Event):
        self._blocks, self._rest, self._stopped = transfer.blocks(address), memoryview(b""), stopped
        self.size = self.crc = 0

    def read(self, count: int) -> memoryview:
        """At most so many bytes, none at the end; `Stopped` where nobody waits for them."""
        if self._stopped.is_set():
            raise shard_cache.Stopped
        if not self._rest and (block := next(self._blocks, None)):
            self.size, self.crc = self.size + len(block), zlib.crc32(block, self.crc)
            self._rest = memoryview(block)
        piece, self._rest = self._rest[:count], self._rest[count:]
        return piece


def _indexed(paths: Mapping[str, Path], data: Data) -> dict[str, Index]:
    """The indices of shards by their addresses, several made at one time."""
    stopped, index_of = threading.Event(), dict[str, Index]()
    pool = ThreadPoolExecutor(_AT_A_TIME)
    try:
        with bar("indexing", len(paths), minimum=2) as progress:
            for index in pool.map(lambda url: _index(url, paths[url], data, stopped), paths):
                index_of[index.url] = index
                progress(len(index_of))
    finally:
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)
    return index_of


def _index(address: str, path: Path, data: Data, stopped: threading.Event) -> Index:
    """Index a shard, by the index file beside it or by reading it."""
    file, mark, query = address.partition("?")
    beside = transfer.small(f"{file}{shard_cache.INDEX}{mark}{query}")
    if beside and (index := shard_cache.adopt(path, beside, address)):
        return index
    stream = _Stream(address, stopped)
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=2**16) as opened:  # type: ignore[call-overload]
            rows = _rows(address, opened, data)
    except _DAMAGED as error:
        raise _damaged(address, error) from error
    while stream.read(2**16):
        pass
    return shard_cache.keep(path, Index(address, stream.size, stream.crc, rows))


def _label(shard: Path | str, opened: tarfile.TarFile, member: tarfile.TarInfo, data: Data) -> str | None:
    """The label in a file of a shard; None for a JSON object that has none."""
    stream = opened.extractfile(member)
    text = stream.read(_LABEL_BYTES).decode("utf-8", "replace") if stream else ""
    if not member.name.endswith(".json"):
        return names.normal(text) or None
    try:
        record = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise DataError(f"{shard}: {member.name} is not a JSON object ({error}); write the shard again") from error
    wanted = [data.target_column] if data.target_column else columns.TARGETS
    value = next((record[name] for name in wanted if name in record), None)
    return None if value is None else names.normal(str(value))


def _with_class_names(classes: str, samples: list[Sample]) -> list[Sample]:
    """The samples with class names in place of numbers, where there is a list of names that has all of them."""
    lines = [names.normal(line) for line in classes.splitlines() if line.strip()]
    numbers = {sample.label for sample in samples if sample.label is not None}
    if not all(number.isdigit() and int(number) < len(lines) for number in numbers):
        return samples
    return [s if s.label is None else s._replace(label=lines[int(s.label)]) for s in samples]
