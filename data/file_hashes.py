"""What files hold, without reading them again: a digest and the sides of each, remembered by its size and its time.

The memory is this machine's, in the user's cache folder, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from config.places import atomic_write, cache_folder, once_a_host
from config.text import counted
from data.decode.image import sides


class Content(NamedTuple):
    """The SHA-256 of a file, hexadecimal, and the sides of its image as it is shown, in pixels."""

    digest: str
    height: int
    width: int


def of(paths: Sequence[Path], workers: int, progress: Callable[[int], None] = lambda _: None) -> dict[Path, Content]:
    """The contents of the files that are images by their headers; `progress` gets the number of files read so far."""
    memory = cache_folder() / "contents.json"
    stats = {path: stat for path in dict.fromkeys(paths) if (stat := size_and_time(path))}
    names = {path: str(path.resolve()) for path in stats}
    known, fresh = _known(memory, stats, names)
    if fresh:
        with once_a_host(f"reading {counted(len(fresh), 'image')}", f"{min(names.values())} {max(names.values())}"):
            known, fresh = _known(memory, stats, names)
            with ThreadPoolExecutor(workers) as pool:
                contents = zip(fresh, pool.map(_look, fresh.values()), strict=True)
                for count, (name, content) in enumerate(contents, start=1):
                    known[name] = [*stats[fresh[name]], *content]
                    progress(count)
            if fresh:
                _write(memory, known)
    return {path: Content(*known[names[path]][2:]) for path in stats if known[names[path]][2:]}


def _known(
    memory: Path, stats: Mapping[Path, list[int]], names: Mapping[Path, str]
) -> tuple[dict[str, list[Any]], dict[str, Path]]:
    """What is remembered, and the files, by their names, that were not seen or have changed."""
    try:
        known = dict(json.loads(memory.read_bytes()))
    except (OSError, ValueError):
        known = {}
    return known, {names[path]: path for path, stat in stats.items() if known.get(names[path], [])[:2] != stat}


def _look(path: Path) -> tuple[()] | Content:
    try:
        data = path.read_bytes()
    except OSError:
        return ()
    shape = sides(data)
    return Content(hashlib.sha256(data).hexdigest(), *shape) if shape else ()


def size_and_time(path: Path) -> list[int] | None:
    """The bytes of a file and its time of change in nanoseconds; None where there is no file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _write(memory: Path, known: dict[str, list[Any]]) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(memory, json.dumps(known).encode())
    except OSError as error:
        print(f"{memory}: cannot be written ({error.strerror}); the files are read again next time", file=sys.stderr)
