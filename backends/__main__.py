"""`python -m backends tune`: which ways to compute gradients this chip is faster with in MLX, measured and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence

import backends
from config.program import entry
from config.program.parser import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, with a `TandemError` as one line on stderr."""
    return entry.run(_run, argv, "python -m backends")


def _run(words: list[str]) -> int:
    parser = Parser(prog="python -m backends", description=__doc__)
    entry.add_options(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    tune = commands.add_parser("tune", help="measure MLX's gradients on this chip (done at first use on Metal)")
    tune.add_argument("--json", action="store_true", help="print one JSON object")
    print(_tune(parser.parse_args(words).json))
    return 0


def _tune(as_json: bool) -> str:
    backends.require("mlx")
    from backends.mlx import tune

    file, seconds = tune.cache_file(), tune.measure(budget=60.0)
    tune.write(file, seconds)
    chosen = tune.faster(seconds)
    if as_json:
        return json.dumps({"file": str(file), "seconds": seconds, "chosen": chosen})
    rows = [f"{'gradient':34}{'MLX, ms':>10}{'ours, ms':>10}  chosen"]
    for key, both in seconds.items():
        library, ours = (1e3 * both[way] for way in tune.WAYS)
        rows.append(f"{key:34}{library:10.2f}{ours:10.2f}  {chosen[key]}")
    return "\n".join([*rows, f"kept in {file}"])


if __name__ == "__main__":
    raise SystemExit(main())
