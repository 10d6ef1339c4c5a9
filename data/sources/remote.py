"""Shards and tables at a URL (`https://`, `s3://`, ...), fetched once through fsspec into the user's cache folder."""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path

from config.errors import DataError
from config.places import atomic_path, cache_folder, once_a_host
from data.streaming import transfer

_URL = re.compile(r"^([a-z][a-z0-9+.-]+):/+(?=[^/])")


def url(root: Path) -> str | None:
    """The URL that a path was before pathlib folded its slashes, None for a path of this machine."""
    match = _URL.match(root.as_posix())
    if not match or len(match.group(1)) < 2:
        return None
    host = "/" if match.group(1) == "file" else ""  # which names no host
    return f"{match.group(1)}://{host}{root.as_posix()[match.end() :]}"


def fetch(address: str) -> Path:
    """The folder with the files of a URL, or of many as in `https://host/{000..009}.tar`; what is there is kept.

    Raises `DataError` and `BackendUnavailable` as `transfer.blocks`.
    """
    folder = cache_folder() / "remote" / hashlib.sha256(address.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for single, name in transfer.names(expand(address)).items():
        path = folder / name
        if not path.exists():
            with once_a_host(f"fetching {single}", str(path)):
                _fetch(single, path)
    return folder


def _fetch(single: str, path: Path) -> None:
    """One file, unless it is there."""
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as unfinished, unfinished.open("wb") as out:
            out.writelines(transfer.blocks(single))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); make room, or set TANDEM_CACHE to another folder"
        ) from error


def expand(address: str) -> list[str]:
    """The addresses of `{000..009}`, numbers with leading zeros and both ends included, and of `{a,b}`, as in bash:
    braces may lie within braces."""
    start, depth, commas = address.find("{"), 0, list[int]()
    for index in range(max(start, 0), len(address)):
        depth += (address[index] == "{") - (address[index] == "}")
        if depth == 1 and address[index] == ",":
            commas.append(index)
        if not depth:
            break
    if start < 0 or depth:
        return [address]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", address[start + 1 : index])
    if numbers:
        first, last = numbers.groups()
        inner = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        cuts = [start, *commas, index]
        inner = [text for i, j in itertools.pairwise(cuts) for text in expand(address[i + 1 : j])]
    return [address[:start] + text + rest for text in inner for rest in expand(address[index + 1 :])]
