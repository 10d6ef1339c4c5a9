"""A PostgreSQL server of a test's own: in a temporary folder, on a free port of this machine, never as root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def programs() -> Path | None:
    """Where initdb and postgres are: on the path, or where Debian has them."""
    found = shutil.which("initdb")
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), *([Path(found).resolve().parent] if found else [])]
    return next((place for place in reversed(places) if (place / "postgres").exists()), None)


@contextmanager
def server() -> Iterator[str]:
    """The URL of an empty data base; skips the test where no server is installed or nobody may run it."""
    where = programs()
    if where is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="tandem_postgres_"))
    other: dict[str, Any] = {}
    if os.geteuid() == 0:
        entry = next((entry for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody")), None)
        if entry is None:
            pytest.skip("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
        other = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        os.chown(folder, entry.pw_uid, entry.pw_gid)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    process = None
    try:
        made = ["-D", str(folder / "data"), "-U", "tandem", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C"]
        subprocess.run([where / "initdb", *made], check=True, timeout=120, **quiet, **other)
        port = _free()
        options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", str(folder), "-c", "fsync=off"]
        process = subprocess.Popen([where / "postgres", "-D", str(folder / "data"), *options], **quiet, **other)
        _wait(where, port, process)
        yield f"postgresql://tandem@127.0.0.1:{port}/postgres"
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # which waits for no connection
            process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(where: Path, port: int, process: subprocess.Popen[bytes]) -> None:
    ready = [where / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    for _ in range(600):
        assert process.poll() is None, f"the server ended with {process.returncode}"
        if subprocess.run(ready, check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError("the server does not accept connections")


def _free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
