"""Files at a URL through fsspec, front to back in large requests, with another attempt where a connection breaks."""

from __future__ import annotations

import posixpath
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO, Any

from config.errors import BackendUnavailable, DataError

ATTEMPTS = 5  # without a byte between them
TIMEOUT = 60.0  # seconds without a byte, after which a connection counts as broken
BLOCK = 8 * 2**20  # bytes of a request where a server has to be asked for ranges, as S3 does
_PIECE = 2**20
_PAUSE = 0.5  # seconds before the second attempt, doubled for each further one
_LASTING = (400, 401, 403, 404, 405, 410)  # statuses that no other attempt changes


def blocks(address: str, size: int | None = None) -> Iterator[bytes]:
    """The bytes of a file at a URL, in pieces. Over HTTP one request brings all of it, elsewhere one request a `BLOCK`.

    Where a connection breaks, or ends before `size` bytes, reading continues at the same byte, after at most `ATTEMPTS`
    attempts without progress. Raises `DataError` where the file cannot be read, `BackendUnavailable` where the library
    for that kind of URL is not installed.
    """
    done = failed = 0
    while True:
        try:
            with _opened(address, done) as stream:
                while piece := stream.read(_PIECE):
                    done, failed = done + len(piece), 0
                    yield piece
            if size is None or done >= size:
                return
            raise EOFError(f"it ends after {done} of {size} bytes")
        except ImportError as error:
            raise missing_library(address, error) from error
        except _faults() as error:
            failed += 1
            why = str(error) or type(error).__name__
            if isinstance(error, FileNotFoundError):
                raise DataError(f"{address}: cannot be fetched (there is no such file); check the address") from error
            if isinstance(error, PermissionError) or getattr(error, "status", 0) in _LASTING:
                raise DataError(f"{address}: cannot be fetched ({why}); check your access to it") from error
            if failed >= ATTEMPTS:
                raise DataError(
                    f"{address}: cannot be fetched, {failed} attempts failed at byte {done} ({why}); check the "
                    "connection and start again, what was fetched before is kept"
                ) from error
            time.sleep(_PAUSE * 2 ** (failed - 1))


def names(addresses: Sequence[str]) -> dict[str, str]:
    """For each address its path below the folder that they have in common."""
    paths = [PurePosixPath(address.partition("?")[0]) for address in addresses]
    base = posixpath.commonpath([path.parent for path in paths])
    return {address: path.relative_to(base).as_posix() for address, path in zip(addresses, paths, strict=True)}


def small(address: str) -> bytes | None:
    """The bytes of a small file, None where it is not there or may not be read."""
    try:
        return b"".join(blocks(address))
    except DataError:
        return None


def tar_files(address: str) -> list[str]:
    """The tar files in a folder at a URL, sorted; `DataError` where it holds none."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(address, **_options(address))
        files = sorted(name for name in fs.ls(path, detail=False) if name.endswith(".tar"))
    except ImportError as error:
        raise missing_library(address, error) from error
    except _faults() as error:
        raise DataError(
            f"{address}: cannot be listed ({error or type(error).__name__}); name the shards, as in "
            "https://host/{000..009}.tar"
        ) from error
    if not files:
        raise DataError(f"{address}: holds no .tar files; name the shards, as in https://host/{{000..009}}.tar")
    return [str(fs.unstrip_protocol(name)) for name in files]


def missing_library(address: str, error: ImportError) -> BackendUnavailable:
    """The line for a kind of URL whose library is not installed; fsspec itself says so of the rarer ones."""
    if error.name is None:
        return BackendUnavailable(f"{address}: {error}")
    return BackendUnavailable(f'{address}: {error.name} is needed for it; run: pip install -e ".[remote]"')


def _opened(address: str, start: int) -> IO[bytes]:
    """The file from byte `start` on."""
    import fsspec

    fs, path = fsspec.core.url_to_fs(address, **_options(address))
    if not _is_http(address):
        stream: Any = fs.open(path, "rb", block_size=BLOCK, cache_type="none")
        stream.seek(start)
        return stream
    headers = {"headers": {"Range": f"bytes={start}-"}} if start else {}
    stream = fs.open(path, "rb", block_size=0, size=1, **headers)  # a size, so that it is not asked for first
    left = start if stream.r.status != 206 else 0  # a server without ranges sends all of it again
    while left:
        left -= len(stream.read(min(left, _PIECE))) or left
    return stream


def _is_http(address: str) -> bool:
    return re.match(r"https?://", address) is not None


def _options(address: str) -> dict[str, Any]:
    """What fsspec's file system is made with, beside the user's own fsspec configuration."""
    if not _is_http(address):
        return {}
    import aiohttp
    import fsspec

    configured = fsspec.config.conf.get(address.partition(":")[0], {}).get("client_kwargs", {})
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True, **configured}}


def _faults() -> tuple[type[Exception], ...]:
    """What the libraries that are loaded raise where a transfer fails."""
    known = {"aiohttp": ("ClientError",), "botocore.exceptions": ("BotoCoreError", "ClientError")}
    loaded = [(sys.modules[name], errors) for name, errors in known.items() if name in sys.modules]
    return (OSError, EOFError, ValueError, *(getattr(module, name) for module, names in loaded for name in names))
