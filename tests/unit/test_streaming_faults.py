"""What can go wrong between a training and the shards at a URL: each is mended, or one line."""

from __future__ import annotations

import errno
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest

from config.errors import DataError
from config.sections.data import Data
from data import sources
from data.augment.transforms import EvalTransform
from data.cache.images import Images
from data.loading.loader import Loader
from data.streaming import shard_cache, transfer
from models.card import Preprocessing
from tests.unit import shards
from tests.unit.shards import SIDE, Store
from tests.unit.shards import cache as cache

SHARDS = 4
URL = "shards://{000..003}.tar"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = shards.write(tmp_path / "data", SHARDS)
    Store.fill(folder)
    return folder


def table(url: str = URL) -> sources.Table:
    return sources.load(Data(root=Path(url), streaming=True))


def epoch(of: sources.Table, limit: int = shard_cache.LIMIT) -> np.ndarray:
    """All images in order."""
    loader = Loader(
        of.paths, EvalTransform(Preprocessing(size=SIDE)), SIDE, 8, 2, images=Images(cache_bytes=0), shard_bytes=limit
    )
    return np.concatenate([batch.images.copy() for batch in loader.epoch(np.arange(len(of.paths)))])


def test_a_connection_that_breaks_is_opened_again_where_it_broke(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_PIECE", 4096)  # a request, so that a shard takes several
    found, expected = table(), epoch(sources.load(root))
    Store.reset()
    Store.breaks = {"002.tar": transfer.ATTEMPTS - 1}
    np.testing.assert_array_equal(epoch(found), expected)
    assert Store.bytes == {name: len(content) for name, content in Store.files.items()}, "no byte twice"


def test_a_connection_that_breaks_again_and_again_is_one_line(root: Path) -> None:
    found = table()
    Store.reset()
    Store.breaks = {"002.tar": 99}
    with pytest.raises(DataError, match=r"002\.tar: cannot be fetched, 5 attempts failed at byte 0 \(reset by peer\)"):
        epoch(found)
    assert Store.requests["002.tar"] == 5
    Store.reset()
    np.testing.assert_array_equal(epoch(found), epoch(sources.load(root)))
    assert Store.requests["000.tar"] == 0, "what was fetched before is kept"


def test_a_shard_that_vanishes_is_one_line_without_another_attempt(root: Path) -> None:
    found = table()
    del Store.files["001.tar"]
    with pytest.raises(DataError, match=r"001\.tar: cannot be fetched \(there is no such file\); check the address"):
        epoch(found)


@pytest.mark.parametrize("how", ["cut", "changed"])
def test_a_shard_that_is_no_longer_what_was_indexed_is_not_trained_on(how: str, root: Path) -> None:
    found, content = table(), Store.files["001.tar"]
    flipped = content[:600] + bytes([content[600] ^ 1]) + content[601:]
    Store.files["001.tar"] = content[: len(content) // 2] if how == "cut" else flipped
    line = r"cannot be fetched, 5 attempts" if how == "cut" else r"is no longer what was indexed"
    with pytest.raises(DataError, match=rf"001\.tar: {line}"):
        epoch(found)


@pytest.mark.parametrize("at", [700, 5000])
def test_a_truncated_shard_is_refused_when_it_is_indexed(at: int, root: Path) -> None:
    Store.files["001.tar"] = Store.files["001.tar"][:at]
    with pytest.raises(DataError, match=r"001\.tar: is a damaged or packed shard"):
        table()


def test_a_shard_that_was_never_there_is_one_line(root: Path) -> None:
    with pytest.raises(DataError, match=r"009\.tar: cannot be fetched \(there is no such file\)"):
        table("shards://{000,009}.tar")


def test_no_room_for_a_shard_is_one_line(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = table()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_cache, "_copy", full)
    with pytest.raises(DataError, match=r"000\.tar: cannot be kept \(No space left on device\); make room"):
        epoch(found)
    assert not list(cache.rglob("*.part"))


def test_what_a_killed_process_left_behind_neither_stays_nor_is_read(root: Path, cache: Path) -> None:
    found, expected = table(), epoch(sources.load(root))
    folder = next(cache.rglob("000.tar.index.json")).parent
    (folder / ".001.tar.part").write_bytes(b"half" * 999)
    (folder / "old.tar").write_bytes(b"x" * 999)
    np.testing.assert_array_equal(epoch(found, limit=1), expected)
    assert not (folder / "old.tar").exists() and not list(cache.rglob("*.part"))


# Over HTTP and S3, where their libraries are there.


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder with ranges, counts requests, and does what `faults` say for the next request of a file: reset
    the connection in the middle, stall there, or give a status."""

    ranges = True
    requests: ClassVar[Counter[str]] = Counter()
    faults: ClassVar[dict[str, list[Any]]] = {}

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        name = Path(self.path).name
        file = Path(self.directory) / name
        if name.endswith(".tar"):
            self.requests[name] += 1
        fault = self.faults[name].pop(0) if self.faults.get(name) else None
        if isinstance(fault, int) or not file.exists():
            self.send_error(fault if isinstance(fault, int) else 404)
            return
        content, first = file.read_bytes(), 0
        wanted = self.headers.get("Range")
        if wanted and self.ranges:
            first = int(wanted.removeprefix("bytes=").partition("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if fault is None:
            self.wfile.write(content[first:])
            return
        self.wfile.write(content[first : first + 20000])
        self.wfile.flush()
        if fault == "stall":
            time.sleep(1.0)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(transfer, "TIMEOUT", 0.3)
    Handler.requests.clear()
    Handler.faults.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/{{000..003}}.tar"
        http.shutdown()


def test_over_http_a_shard_is_one_request(server: str, root: Path) -> None:
    (root / "classnames.txt").write_text("red\ngreen\nblue\n")
    found = table(server)
    assert found.class_names == sources.load(root).class_names == ("blue", "green", "red")
    assert set(Handler.requests.values()) == {1}
    Handler.requests.clear()
    np.testing.assert_array_equal(epoch(found), epoch(sources.load(root)))
    assert Handler.requests == {f"{i:03d}.tar": 1 for i in range(SHARDS)}


def test_an_index_beside_the_shards_saves_reading_them(server: str, root: Path, cache: Path) -> None:
    first = table(server)
    for file in cache.rglob("*.index.json"):
        shutil.copy(file, root)
    shutil.rmtree(cache)
    Handler.requests.clear()
    assert table(server).ids == first.ids and not Handler.requests


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", ["reset", "stall", 503])
def test_over_http_a_transfer_goes_on_where_it_stopped(
    fault: Any, ranges: bool, server: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "ranges", ranges)
    found = table(server)
    Handler.requests.clear()
    Handler.faults.update({"002.tar": [fault, fault]})
    np.testing.assert_array_equal(epoch(found), epoch(sources.load(root)))
    assert Handler.requests["002.tar"] >= 2


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (500, 5)])
def test_over_http_a_status_that_stays_is_one_line(status: int, requests: int, server: str) -> None:
    found = table(server)
    Handler.requests.clear()
    Handler.faults.update({"001.tar": [status] * 99})
    with pytest.raises(DataError, match=r"001\.tar: cannot be fetched"):
        epoch(found)
    assert Handler.requests["001.tar"] == requests


def test_shards_in_s3_are_listed_and_streamed(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs, moto = pytest.importorskip("s3fs"), pytest.importorskip("moto.server")
    http = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    http.start()
    try:
        host, port = http.get_host_and_port()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://{host}:{port}"})
        fs = s3fs.S3FileSystem()
        fs.mkdir("pictures")
        for path in root.glob("*.tar"):
            fs.pipe_file(f"pictures/train/{path.name}", path.read_bytes())
        found = table("s3://pictures/train/")
        np.testing.assert_array_equal(epoch(found), epoch(sources.load(root)))
        fs.rm("pictures/train/003.tar")
        next(cache.rglob("003.tar")).unlink()
        with pytest.raises(DataError, match=r"003\.tar: cannot be fetched \(there is no such file\)"):
            epoch(found)
    finally:
        http.stop()
