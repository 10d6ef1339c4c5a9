"""What several processes of a host start with together is made by one of them: the cache of pixels, hashes, the audit,
unpacked files, weights of the hub."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from config.places import once_a_host
from config.sections.data import Data
from data.cache import disk
from data.cache.images import Images
from models.card import Preprocessing
from tests.processes import fresh

FRESH = fresh("data.cache.disk", "data.audit.survey", "data.sources", "huggingface_hub", "tests.unit.test_once_a_host")
ROOT = Path(__file__).parents[2]
PREP = Preprocessing(size=16)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(24)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return paths


def caches(paths: list[Path], place: Path, log: Path) -> None:
    """Two stores, and a line for each image that is decoded for them or read for its hash."""
    from data import file_hashes

    attempt, look = disk._attempt, file_hashes._look

    def noted(form: disk.Reduced | disk.Square, files: Images, path: Path) -> object:
        note(log, f"{type(form).__name__} {path.name}")
        return attempt(form, files, path)

    def seen(path: Path) -> object:
        note(log, f"look {path.name}")
        return look(path)

    disk._attempt, file_hashes._look = noted, seen
    found = disk.sources(Data(root=place, cache_dir=place, cache_gb=1), PREP, paths, Images(0), lambda: False)
    assert found.judged is not None
    assert found.judged(paths[0]).shape == (16, 16, 3)


def note(log: Path, line: str) -> None:
    with log.open("a") as stream:
        stream.write(f"{line}\n")


def together(target: object, *arguments: object) -> None:
    """Three processes that start at once and end well."""
    processes = [FRESH.Process(target=target, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
        assert process.exitcode == 0


def test_the_pixels_of_each_image_are_made_once(images: list[Path], tmp_path: Path) -> None:
    together(caches, images, tmp_path / "cache", tmp_path / "log")
    counts = Counter((tmp_path / "log").read_text().splitlines())
    assert len(counts) == 3 * len(images)
    assert set(counts.values()) == {1}


def audits(paths: list[Path], place: Path, log: Path) -> None:
    from data.audit import survey

    look = survey.look

    def noted(path: Path, limit: int) -> object:
        note(log, path.name)
        return look(path, limit)

    survey.look = noted
    assert len(survey.survey(paths, place).facts) == len(paths)


def test_the_audit_looks_at_each_image_once(images: list[Path], tmp_path: Path) -> None:
    together(audits, images, tmp_path / "set", tmp_path / "log")
    counts = Counter((tmp_path / "log").read_text().splitlines())
    assert counts == {path.name: 1 for path in images}


class _Hub(BaseHTTPRequestHandler):
    """A hub with one file, `model.safetensors` of `someone/net`, which takes its time."""

    content = bytes(range(256)) * 4096
    sent: ClassVar[Counter[str]] = Counter()

    def do_HEAD(self) -> None:
        self._head()

    def do_GET(self) -> None:
        self._head()
        self.sent[self.path] += 1
        for start in range(0, len(self.content), 2**18):
            threading.Event().wait(0.1)
            self.wfile.write(self.content[start : start + 2**18])

    def _head(self) -> None:
        digest = hashlib.sha256(self.content).hexdigest()
        self.send_response(200)
        for name, value in (("X-Repo-Commit", "0" * 40), ("ETag", f'"{digest}"'), ("X-Linked-Etag", f'"{digest}"')):
            self.send_header(name, value)
        self.send_header("X-Linked-Size", str(len(self.content)))
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    _Hub.sent.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_weights_of_the_hub_are_downloaded_once(hub: str, tmp_path: Path) -> None:
    code = "from models.weights import hub; print(hub.download('someone/net', 'model.safetensors'))"
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", code]
    starts = [subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    files = {process.communicate(timeout=100)[0].strip() for process in starts}
    assert [process.returncode for process in starts] == [0, 0, 0]
    (file,) = files
    assert Path(file).read_bytes() == _Hub.content
    assert [count for path, count in _Hub.sent.items() if path.endswith("/model.safetensors")] == [1]


def test_a_stop_ends_the_wait_and_a_folder_that_cannot_be_written_none_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    looks = iter([False, True])
    with once_a_host("making", "this"), once_a_host("making", "this", lambda: next(looks)):
        assert capsys.readouterr().out == "waiting for another process: making\n"
    (tmp_path / "file").touch()
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "file"))
    with once_a_host("making", "this"):
        pass
