"""`python -m infer serve`: a page on this machine for trying an ensemble, and `POST /predict` in the same process.

Uploads are limited in bytes and pixels. Without `--host` it listens on the loopback only, see `infer.web`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from config.program.parser import Parser, whole
from infer import web
from infer.commands import members
from infer.commands.page import Limits, predict
from infer.pages import page
from infer.runner import Runner


def main(words: Sequence[str]) -> int:
    """Run the command until it is stopped; `TandemError`s are the caller's."""
    about = "Try an ensemble on a page of this machine; the same process answers POST /predict (an image as the body)."
    parser = Parser("python -m infer serve", description=about)
    members.add_members(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (default: %(default)s, this machine)"
    )
    parser.add_argument("--port", type=int, default=7860, help="the port, or 0 for any free one (default: %(default)s)")
    parser.add_argument("--max_mib", type=whole(1), default=20, help="MiB of an upload (default: %(default)s)")
    parser.add_argument(
        "--max_pixels",
        type=whole(1),
        default=50_000_000,
        help="pixels of an image (default: %(default)s)",
    )
    options = parser.parse_args(words)
    chosen = members.chosen(options)
    limits = Limits(options.max_mib * 2**20, options.max_pixels)
    if options.host not in web.LOOPBACK:
        print(f"warning: listens on {options.host}: whoever reaches this machine can use it", file=sys.stderr)
    with Runner(chosen, members.shared_options(options), options.in_memory) as runner:
        return web.Server(app(runner, limits), options.host, options.port).run()


def app(runner: Runner, limits: Limits) -> web.App:
    """The page at `/`, and `POST /predict` with an encoded image as its body."""
    html = page.prediction(runner.name, runner.ensemble.views, limits.size, "predict")

    def respond(request: web.Request) -> web.Response:
        match request.method, request.path:
            case "POST", "/predict":
                return predict(runner, request, limits)
            case "GET", "/":
                return web.Response(html)
            case "GET", "/predict":
                raise web.Refused(405, "POST an image here")
        raise web.Refused(404, "there is / and POST /predict")

    return respond
