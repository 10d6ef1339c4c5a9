"""A headless Chromium that a test can drive, over the DevTools protocol and the standard library alone."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
    "--window-size=1280,1000",
]


def program() -> str | None:
    """Where Chromium is, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page; a context manager. `profile` is a new folder."""

    def __init__(self, url: str, profile: Path):
        self._process = subprocess.Popen(
            [str(program()), *FLAGS, f"--user-data-dir={profile}", url],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = wait(lambda: _read(profile / "DevToolsActivePort")).split()[0]
        pages = wait(lambda: [p for p in _get(f"http://127.0.0.1:{port}/json") if p["type"] == "page"])
        path = pages[0]["webSocketDebuggerUrl"].partition(f":{port}")[2]
        self._socket = _connect(int(port), path)
        self._count = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a DevTools method and return its result."""
        self._count += 1
        _send(self._socket, json.dumps({"id": self._count, "method": method, "params": parameters}).encode())
        while True:
            message = json.loads(_receive(self._socket))
            if message.get("id") == self._count:
                return message.get("result", {})

    def text(self) -> str:
        """What the page shows."""
        found = self.call("Runtime.evaluate", expression="document.body.innerText", returnByValue=True)
        return str(found["result"].get("value", ""))

    def choose_files(self, selector: str, paths: list[Path]) -> None:
        """Give files to a file input."""
        node = wait(lambda: self._node(selector))
        self.call("DOM.setFileInputFiles", nodeId=node, files=list(map(str, paths)))

    def _node(self, selector: str) -> int | None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        return self.call("DOM.querySelector", nodeId=root, selector=selector).get("nodeId")

    def picture(self, path: Path) -> None:
        """A PNG of the page."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(20)


def wait(look: Any, seconds: float = 60.0) -> Any:
    """What `look` finds as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.1)
    return found


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _get(url: str) -> Any:
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def _connect(port: int, path: str) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=60)
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade"]
    made.sendall("\r\n".join([*lines, f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += made.recv(1)
    assert b" 101 " in head.splitlines()[0], head
    return made


def _send(to: socket.socket, data: bytes) -> None:
    """One masked text frame (RFC 6455); a mask of zeros is a mask."""
    size = bytes([0x80 | 126]) + len(data).to_bytes(2, "big") if 125 < len(data) < 65536 else bytes([0x80 | len(data)])
    to.sendall(b"\x81" + size + bytes(4) + data)


def _receive(source: socket.socket) -> bytes:
    """One whole message, from as many frames as it has."""
    data = b""
    while True:
        first, second = _exactly(source, 2)
        size = second & 127
        if size >= 126:
            size = int.from_bytes(_exactly(source, 2 if size == 126 else 8), "big")
        data += _exactly(source, size)
        if first & 0x80:
            return data


def _exactly(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += source.recv(count - len(data))
    return data
