"""`python -m infer serve`: a page on this machine for trying an ensemble, and `POST /predict` in the same process.

Uploads are limited in bytes and pixels; only requests that name this machine are answered, so that no foreign page can
reach it by a name of its own. Without `--host` it listens on the loopback only. What the page looks like is `page`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backends import installed
from config.errors import BackendUnavailable, DataError, Diverged
from infer.commands import members
from infer.commands.members import positive
from infer.explain.report import explain
from infer.runner import Runner

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Limits:
    """What an upload may be: bytes of a file, pixels of an image."""

    size: int
    pixels: int


def main(words: Sequence[str]) -> int:
    """Run the command until it is stopped; `TandemError`s are the caller's."""
    options = _parser().parse_args(words)
    if not installed("gradio"):
        raise BackendUnavailable('serve: needs gradio, not installed here; run: pip install -e ".[serve]"')
    import uvicorn

    chosen = members.chosen(options)
    limits = Limits(options.max_mib * 2**20, options.max_pixels)
    if options.host not in _LOOPBACK:
        print(f"warning: listens on {options.host}: whoever reaches this machine can use it", file=sys.stderr)
    with Runner(chosen, members.shared_options(options), options.in_memory) as runner:
        print(f"open http://{options.host}:{options.port} (Ctrl-C ends it)", flush=True)
        uvicorn.run(app(runner, limits, options.host), host=options.host, port=options.port, log_level="warning")
    return 0


def app(runner: Runner, limits: Limits, host: str = "127.0.0.1") -> Any:
    """The FastAPI application: `POST /predict` with an encoded image as its body, and the page at `/`."""
    import gradio
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from infer.commands import page

    served = FastAPI(title="Tandem", docs_url=None, redoc_url=None, openapi_url=None)
    if host in _LOOPBACK:
        served.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])

    async def answer(request: Request) -> JSONResponse:
        data = await _body(request, limits.size)
        if data is None:
            return JSONResponse({"error": f"the image has more than {limits.size} bytes"}, 413)
        try:
            said = await run_in_threadpool(explain, runner, data, limits.pixels)
        except DataError as error:
            return JSONResponse({"error": str(error)}, 422)
        except Diverged as error:
            return JSONResponse({"error": str(error)}, 500)
        return JSONResponse(said.as_json())

    served.add_route("/predict", answer, methods=["POST"])
    return gradio.mount_gradio_app(
        served, page.build(runner, limits.pixels), path="", max_file_size=limits.size, **page.look()
    )


async def _body(request: Any, limit: int) -> bytes | None:
    """The body of a request, or None as soon as it has more than `limit` bytes."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > limit:
            return None
    return bytes(data)


def _parser() -> argparse.ArgumentParser:
    about = "Try an ensemble on a page of this machine; the same process answers POST /predict (an image as the body)."
    parser = argparse.ArgumentParser("python -m infer serve", description=about, allow_abbrev=False)
    members.add_members(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (default: %(default)s, this machine)"
    )
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    parser.add_argument("--max_mib", type=positive, default=20, help="MiB of an upload (default: %(default)s)")
    parser.add_argument(
        "--max_pixels",
        type=positive,
        default=50_000_000,
        help="pixels of an image (default: %(default)s)",
    )
    return parser
