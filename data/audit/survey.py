"""A look at every file of a data set by several threads, kept from one time to the next in a cache of the user's.

A file is looked at again when its size or its time of change differs. The cache lies outside the data set, which may be
read-only (`config.places`), and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config.places import atomic_write, cache_folder, once_a_host
from data import file_hashes
from data.audit import duplicates, fingerprint
from data.audit.duplicates import Pair
from data.audit.image_stats import ImageStats, Look, look
from data.cores import cores
from data.decode.image import PIXEL_LIMIT
from data.pixels import Pixels

VERSION = 3  # of what is measured; raise it when `look` or `duplicates` changes
_DAMAGED = (OSError, ValueError, LookupError, EOFError, TypeError, zipfile.BadZipFile)
Key = tuple[str, int, int]


@dataclass(frozen=True, eq=False)
class Survey:
    """The looks at N files, and the pairs that show the same picture, by position.

    `pictures` is uint8 `[N, S, S]`, `hashes` uint64 `[N, 8]`. Of files with the same content only the first takes part
    in `pairs`. `looked` is how many were not in the cache.
    """

    facts: list[ImageStats]
    pictures: Pixels
    hashes: NDArray[np.uint64]
    pairs: list[Pair]
    looked: int


class Stopped(Exception):
    """The user asked to stop; what was looked at is kept."""


def survey(
    paths: Sequence[Path],
    folder: Path,
    pixel_limit: int = PIXEL_LIMIT,
    workers: int = 0,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _: None,
) -> Survey:
    """Look at `paths`; the data set's `folder` names the cache. `progress` gets the number of files that are done.

    Raises `Stopped`, after writing the cache, where `stop` returns true.
    """
    resolved = folder.resolve()
    name = f"{resolved.name or 'root'}_{hashlib.sha256(str(resolved).encode()).hexdigest()[:16]}"
    file = cache_folder() / "audit" / f"{name}.npz"
    with once_a_host(f"looking at the images of {folder}", str(file), stop):
        known, pairs_of = _read(file)
        keys = [_key(path, pixel_limit) for path in paths]
        missing = {key: path for key, path in zip(keys, paths, strict=True) if key not in known}
        fresh: dict[Key, Look] = {}
        pool = ThreadPoolExecutor(workers or cores())
        try:
            results = pool.map(lambda path: None if stop() else look(path, pixel_limit), missing.values())
            for key, result in zip(missing, results, strict=True):
                if result is None:
                    raise Stopped
                fresh[key] = result
                progress(len(fresh))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            known = known | fresh
            if fresh:
                _write(file, known, pairs_of)
        looks = [known[key] for key in keys]
        digest = hashlib.sha256(repr(keys).encode()).hexdigest()
        if digest not in pairs_of:
            pairs_of = {digest: _pairs(looks)}
            _write(file, {key: known[key] for key in keys}, pairs_of)
    pictures = np.stack([look.picture for look in looks])
    hashes = np.stack([look.hashes for look in looks])
    return Survey([look.facts for look in looks], pictures, hashes, pairs_of[digest], len(fresh))


def _pairs(looks: Sequence[Look]) -> list[Pair]:
    """Pairs among the first files of each content that can be read, by position in `looks`."""
    first: dict[str, int] = {}
    for position, entry in enumerate(looks):
        if not entry.facts.fault:
            first.setdefault(entry.facts.sha256, position)
    positions = list(first.values())
    if not positions:
        return []
    pairs = duplicates.find(
        np.stack([looks[position].picture for position in positions]),
        np.stack([looks[position].hashes for position in positions]),
    )
    return [pair._replace(first=positions[pair.first], second=positions[pair.second]) for pair in pairs]


def _key(path: Path, pixel_limit: int) -> Key:
    """What a file is known by; the limit decides whether it counts as readable."""
    size, time = file_hashes.size_and_time(path) or (-1, -1)
    return f"{path}|{pixel_limit}", size, time


def _read(file: Path) -> tuple[dict[Key, Look], dict[str, list[Pair]]]:
    """The looks by key and the pairs by the digest of all keys; empty where there is no cache or a damaged one."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            text = json.loads(arrays["text"].tobytes())
            pictures, hashes = arrays["pictures"], arrays["hashes"]
        if text["version"] != VERSION:
            return {}, {}
        looks = {
            (str(name), int(size), int(time)): Look(ImageStats(**facts), picture, bits)
            for (name, size, time), facts, picture, bits in zip(
                text["keys"], text["facts"], pictures, hashes, strict=True
            )
        }
        pairs = {
            digest: [Pair(first, second, fingerprint.TURNS[turn], *rest) for first, second, turn, *rest in rows]
            for digest, rows in text["pairs"].items()
        }
    except _DAMAGED:
        return {}, {}
    return looks, pairs


def _write(file: Path, looks: dict[Key, Look], pairs_of: dict[str, list[Pair]]) -> None:
    """Replace the cache; where it cannot be written, print a line and continue."""
    pairs = {
        digest: [(p.first, p.second, fingerprint.TURNS.index(p.turn), p.distance, p.likeness) for p in pairs]
        for digest, pairs in pairs_of.items()
    }
    facts = [asdict(look.facts) for look in looks.values()]
    text = json.dumps({"version": VERSION, "keys": list(looks), "facts": facts, "pairs": pairs})
    packed = io.BytesIO()
    np.savez(
        packed,
        text=np.frombuffer(text.encode(), dtype=np.uint8),
        pictures=np.array([look.picture for look in looks.values()], np.uint8),
        hashes=np.array([look.hashes for look in looks.values()], np.uint64),
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, packed.getvalue())
    except OSError as error:
        print(f"audit: not kept for the next time, {file}: {error.strerror}", file=sys.stderr)
