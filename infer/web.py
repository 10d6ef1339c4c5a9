"""The HTTP server of the local pages: `python -m infer serve` and `python -m training board`.

On the loopback it refuses requests whose Host header is not this machine (DNS rebinding), and everywhere POST requests
that a page of another origin makes. Pages may not be framed, and their scripts and styles are their own.
"""

from __future__ import annotations

import hashlib
import json
import socket
import socketserver
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from config.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HTML, JSON, TEXT = "text/html; charset=utf-8", "application/json", "text/plain; charset=utf-8"
_PATIENCE = 30.0  # seconds without a byte until a connection is closed
_HEADERS = {
    # A page's own policy, in its head, allows less; both hold.
    "Content-Security-Policy": "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Refused(Exception):
    """A request that gets an HTTP error `status` with one line of text."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Request:
    """A request: `method` is GET or POST (HEAD arrives as GET), `path` starts with a slash."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Message
    stream: BufferedIOBase

    def body(self, limit: int) -> bytes:
        """All of the body; `Refused` where it has more than `limit` bytes or does not say how many."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Refused(411, "the request does not say how long its body is")
        if int(length) > limit:
            raise Refused(413, f"the image has more than {limit} bytes")
        return self.stream.read(int(length))


@dataclass(frozen=True)
class Response:
    """The response to a request; `headers` replace the server's defaults of that name."""

    body: bytes
    type: str = HTML
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


App = Callable[[Request], Response]


def as_json(value: Any, status: int = 200) -> Response:
    """A value as a JSON response."""
    return Response(json.dumps(value, allow_nan=False).encode(), JSON, status)


class Server(ThreadingHTTPServer):
    """Listens on `host` and `port` (0: any free one) at once, and gives requests to `app`, each in a thread.

    `ConfigError` where it cannot listen there.
    """

    daemon_threads = True

    def __init__(self, app: App, host: str, port: int):
        self.app, self.loopback = app, host in LOOPBACK
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            raise ConfigError(f"{host}, port {port}: {reason}; give another with --port") from error

    def server_bind(self) -> None:
        """Bind without looking up the machine's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def handle_error(self, *_: Any) -> None:
        """Ignore a browser that closes the connection."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            traceback.print_exc()

    def run(self) -> int:
        """Print the address and serve until Ctrl-C; returns the exit code."""
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        try:
            print(f"open http://{host}:{self.server_port} (Ctrl-C ends it)", flush=True)
            self.serve_forever()
        except KeyboardInterrupt:
            print()
        finally:
            self.server_close()
        return 0


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "Tandem", ""
    timeout = _PATIENCE

    def log_message(self, *_: Any) -> None:
        """The terminal stays quiet."""

    def _respond(self) -> None:
        method = "POST" if self.command == "POST" else "GET"
        try:
            response = self.server.app(self._request(method))
        except Refused as error:
            self.close_connection = method == "POST"
            plain = Response(str(error).encode(), TEXT, error.status)
            response = as_json({"error": str(error)}, error.status) if method == "POST" else plain
        except Exception:
            traceback.print_exc()
            response = Response(b"an error of the program; the terminal shows it", TEXT, 500)
            self.close_connection = True
        self._send(response)
        if self.close_connection and method == "POST":
            self._discard_body()

    do_GET = do_HEAD = do_POST = _respond

    def _request(self, method: str) -> Request:
        hosts, target = self.headers.get_all("Host", []), urlsplit(self.path)
        if len(hosts) != 1 or (self.server.loopback and _hostname(hosts[0]) not in LOOPBACK):
            raise Refused(400, f"the Host header {', '.join(hosts)!r} is not this machine; open http://127.0.0.1")
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "none")
        if method == "POST" and (origin not in (None, f"http://{hosts[0]}") or site not in ("same-origin", "none")):
            raise Refused(403, "a page of another origin may not ask this")
        if not target.path.startswith("/"):
            raise Refused(400, "a path starts with /")
        query = dict(parse_qsl(target.query, keep_blank_values=True))
        return Request(method, target.path, query, self.headers, self.rfile)

    def _send(self, response: Response) -> None:
        headers = {**_HEADERS, "Content-Type": response.type, **response.headers}
        status = response.status
        if self.command != "POST" and status == 200:
            headers["ETag"] = f'"{hashlib.sha256(response.body).hexdigest()[:16]}"'
            if self.headers.get("If-None-Match") == headers["ETag"]:
                status = 304
        if self.close_connection:
            headers["Connection"] = "close"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD" and status != 304:
            self.wfile.write(response.body)

    def _discard_body(self) -> None:
        """Read what the client still sends: closing before would take the response away from it."""
        self.connection.shutdown(socket.SHUT_WR)
        for _ in range(1024):
            if not self.rfile.read1(1 << 16):
                return


def _hostname(host: str) -> str:
    """The name in a Host header, without its port; "" where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
