"""A stand-in for the Hugging Face hub: enough of its interface for an upload and for downloads, kept in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"
_COMMIT = "0" * 40


class Handler(BaseHTTPRequestHandler):
    """`files` by (repository, name), `created` repositories with whether they are private."""

    protocol_version = "HTTP/1.1"
    files: dict[tuple[str, str], bytes]
    created: dict[str, bool]

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":
            return self._json(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            again = name in self.created
            self.created.setdefault(name, asked.get("visibility") == "private" or asked.get("private", False))
            return self._json(409 if again else 200, {"url": f"{self._address()}/{name}"})
        repo, _, action = path.removeprefix("/api/models/").partition("/preupload/")
        if action:
            named = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in named]
            return self._json(200, {"files": files})
        repo = path.removeprefix("/api/models/").partition("/commit/")[0]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[repo, line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self._json(200, {"commitUrl": f"{self._address()}/{repo}/commit/{_COMMIT}", "commitOid": _COMMIT})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            repo = "/".join(path.removeprefix("/api/models/").split("/")[:2])
            siblings = [{"rfilename": name} for owner, name in self.files if owner == repo]
            there = repo in self.created
            return self._json(200 if there else 404, {"id": repo, "sha": _COMMIT, "siblings": siblings})
        repo, _, rest = path.removeprefix("/").partition("/resolve/")
        content = self.files.get((repo, rest.partition("/")[2]))
        if content is None:
            return self._json(404, {}, {"X-Error-Code": "EntryNotFound"})
        kind = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": _COMMIT}
        return self._answer(200, content, kind)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _address(self) -> str:
        return f"http://{self.headers['Host']}"

    def _json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serving() -> Iterator[tuple[str, type[Handler]]]:
    """The address of a fresh hub, and its handler, whose class attributes say what it holds."""
    handler = type("Fresh", (Handler,), {"files": {}, "created": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()
