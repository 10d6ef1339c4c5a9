"""Tiny WebDataset shards, and a store at `shards://` that counts what is read of it and breaks when it is asked to."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from PIL import Image

from data.streaming import transfer

SIDE = 16


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, and no pause between attempts, in modules that import this."""
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "_PAUSE", 0.0)
    return tmp_path / "cache"


def png(shade: int, key: int) -> bytes:
    pixels = np.random.default_rng(key).integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels[..., shade] += 150
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return out.getvalue()


def shard(number: int, images: int = 10, classes: int = 3) -> bytes:
    """A shard of so many images, whose classes take turns."""
    files = {}
    for i in range(images):
        key = number * images + i
        files[f"{key:05d}.png"], files[f"{key:05d}.cls"] = png(key % classes, key), str(key % classes).encode()
    return tar(files)


def write(root: Path, count: int, images: int = 10) -> Path:
    """The folder `root` with so many shards, called 000.tar and so on."""
    root.mkdir(parents=True)
    for number in range(count):
        (root / f"{number:03d}.tar").write_bytes(shard(number, images))
    return root


class Store(AbstractFileSystem):
    """Files by name, whose requests are counted: `requests` and `bytes` by name. `breaks` maps a name to how many of
    its next requests break in their middle."""

    protocol = "shards"
    cachable = False
    files: ClassVar[dict[str, bytes]] = {}
    requests: ClassVar[Counter[str]] = Counter()
    bytes: ClassVar[Counter[str]] = Counter()
    breaks: ClassVar[dict[str, int]] = {}

    @classmethod
    def fill(cls, root: Path) -> None:
        """Serve the shards of a folder, nothing read so far."""
        cls.files = {path.name: path.read_bytes() for path in root.glob("*.tar")}
        cls.reset()

    @classmethod
    def reset(cls) -> None:
        """Nothing read so far, nothing broken."""
        cls.requests, cls.bytes, cls.breaks = Counter(), Counter(), {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        """The name alone: there is one folder, whatever it is called."""
        return path.rpartition("/")[2]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        name = self._strip_protocol(path)
        if name not in self.files:
            raise FileNotFoundError(path)
        return {"name": name, "size": len(self.files[name]), "type": "file"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        return [self.info(name) if detail else name for name in sorted(self.files)]

    def _open(self, path: str, mode: str = "rb", **options: Any) -> AbstractBufferedFile:
        options.pop("autocommit", None)
        return File(self, path, mode, **options)


class File(AbstractBufferedFile):
    """A file of the store, read by ranges as that of S3 is."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        found = Store.files[self.path][start:end]
        Store.requests[self.path] += 1
        if Store.breaks.get(self.path, 0):
            Store.breaks[self.path] -= 1
            raise ConnectionResetError("reset by peer")
        Store.bytes[self.path] += len(found)
        return found


fsspec.register_implementation("shards", Store, clobber=True)
assert transfer.BLOCK >= transfer._PIECE
