"""Shards and tables at a URL (`https://`, `s3://`, ...), fetched once through fsspec into the user's cache folder."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from posixpath import basename

from config.errors import BackendUnavailable, DataError
from config.places import cache_folder

_URL = re.compile(r"^([a-z][a-z0-9+.-]+):/+(?=[^/])")


def url(root: Path) -> str | None:
    """The URL that a path was before pathlib folded its slashes, None for a path of this machine."""
    found = _URL.match(root.as_posix())
    return f"{found.group(1)}://{root.as_posix()[found.end() :]}" if found and len(found.group(1)) > 1 else None


def fetch(address: str) -> Path:
    """The folder with the files of a URL, or of many as in `https://host/{000..009}.tar`; what is there is kept.

    Raises `BackendUnavailable` where the library for that kind of URL is not installed, `DataError` where a file cannot
    be had.
    """
    import fsspec

    folder = cache_folder() / "remote" / hashlib.sha256(address.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for single in expand(address):
        place = folder / basename(single.partition("?")[0])
        if place.exists():
            continue
        part = place.with_name(f".{place.name}.part")
        try:
            with fsspec.open(single, "rb") as stream, part.open("wb") as out:
                while block := stream.read(2**20):
                    out.write(block)
            part.replace(place)
        except ImportError as error:
            raise BackendUnavailable(
                f'{single}: {error.name or error} is needed for it; run: pip install -e ".[remote]"'
            ) from error
        except (OSError, ValueError) as error:
            raise DataError(
                f"{single}: cannot be fetched ({error or type(error).__name__}); check the address, or fetch it by hand"
            ) from error
        finally:
            part.unlink(missing_ok=True)
    return folder


def expand(address: str) -> list[str]:
    """The addresses of `{000..009}`, numbers with leading zeros and both ends included, and of `{a,b}`."""
    found = re.search(r"\{([^{}]+)\}", address)
    if not found:
        return [address]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found.group(1))
    if numbers:
        first, last = numbers.groups()
        inner = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        inner = found.group(1).split(",")
    return [one for text in inner for one in expand(address[: found.start()] + text + address[found.end() :])]
