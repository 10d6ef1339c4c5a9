"""`make bench-gpu`: what a person with ten minutes on a CUDA card runs. Nothing from outside of the checkout is needed.

    python -m benchmarks gpu                              # 600 seconds, into docs/engineering/
    python -m benchmarks gpu --seconds 120
    python -m benchmarks gpu --device cpu --updates 1     # a dry run of the whole with small networks
    python -m benchmarks gpu --page FILE.jsonl            # the page again, of any part of a run

Each arm is a process of its own, so that a crash, a hang or a full device ends that arm alone. After each, its figures
are one JSON line on the screen and in the file, and the page is written anew: a run that is cut off is still of use. An
arm that would not fit into what is left of the time is skipped with a line, and so is one whose packages are absent.
What is measured and how stands in `benchmarks.gpu_arms`, the order of the arms here: the most telling ones first.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import flat
from config.errors import BackendUnavailable
from config.program.parser import Parser

DOCS = Path(__file__).parents[1] / "docs" / "engineering" / "benchmarks_gpu.jsonl"
_LEAST_LIMIT = 60.0  # seconds that every arm may take, since a first start is slow


class Arm(NamedTuple):
    """A function of `gpu_arms` with its arguments. `seconds` is what it may take on an A100 or RTX 4090, guessed: it is
    skipped when less is left, and stopped at three times as much (a minute at least)."""

    name: str
    seconds: float
    function: str
    arguments: tuple[Any, ...] = ()


ARMS = (
    Arm("machine", 5, "machine"),
    Arm("train resnet50 eager", 20, "train", ("resnet50", False)),
    Arm("train vit_base eager", 20, "train", ("vit_base_patch16_224", False)),
    Arm("train convnext_base eager", 20, "train", ("convnext_base", False)),
    Arm("train vit_base compiled", 45, "train", ("vit_base_patch16_224", True)),
    Arm("loader", 55, "loader"),
    Arm("loader and step", 30, "fed", ("resnet50",)),
    Arm("inference", 45, "inference", ("convnext_base",)),
    Arm("deterministic", 25, "deterministic", ("resnet50",)),
    Arm("train resnet50 compiled", 50, "train", ("resnet50", True)),
    Arm("train convnext_base compiled", 70, "train", ("convnext_base", True)),
    Arm("train efficientnetv2_s eager", 25, "train", ("tf_efficientnetv2_s", False)),
    Arm("train efficientnet_b4 eager", 25, "train", ("tf_efficientnet_b4", False)),
    Arm("train efficientnetv2_s compiled", 75, "train", ("tf_efficientnetv2_s", True)),
    Arm("train efficientnet_b4 compiled", 75, "train", ("tf_efficientnet_b4", True)),
)

TITLES = {
    "train": "Training steps",
    "loader": "The loader alone, from JPEG files to the device",
    "fed": "The step fed by the loader",
    "inference": "Inference",
    "deterministic": "`train.deterministic`",
}
_ABOUT = ("arm", "device", "date", "seconds", "skipped", "stopped", "failed")  # of every line, not of its table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the arms, or only write the page of lines that are there; 1 without the device, 0 even if an arm failed."""
    parser = Parser("python -m benchmarks gpu", description="What a CUDA card does, in 10 minutes.")
    parser.add_argument("--seconds", type=float, default=600, help="for all arms together")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu for a dry run with small networks")
    parser.add_argument("--updates", type=int, default=0, help="updates of a turn; 0: about two seconds of them")
    parser.add_argument("--workers", type=int, default=0, help="loader threads, timm's processes; 0: one for each core")
    parser.add_argument("--out", type=Path, help="the file of JSON lines (default: benchmarks_gpu.jsonl in docs)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="only write the page of this file of JSON lines")
    arguments = parser.parse_args(argv)
    if arguments.page:
        print(f"{write_page(arguments.page)}: written")
        return 0
    out = arguments.out or (DOCS if arguments.device.startswith("cuda") else Path("runs/bench_gpu_dry_run.jsonl"))
    out.parent.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the arm ends too
    with tempfile.TemporaryDirectory() as folder:
        return _all(out, arguments, (arguments.device, arguments.updates, arguments.workers, folder))


def _all(out: Path, arguments: argparse.Namespace, setting: tuple[Any, ...]) -> int:
    end = time.monotonic() + arguments.seconds
    for arm in ARMS:
        began, left = time.monotonic(), end - time.monotonic()
        if left < arm.seconds:
            figures = {"skipped": f"takes about {arm.seconds:.0f} s, and {max(left, 0):.0f} s are left"}
        else:
            figures = measured(arm, setting, min(left, max(3 * arm.seconds, _LEAST_LIMIT)))
        taken = round(time.monotonic() - began, 1)
        line = {"arm": arm.name, "device": arguments.device, "date": date.today().isoformat(), "seconds": taken}
        print(json.dumps(line | figures), flush=True)
        if arm is ARMS[0] and not figures.keys().isdisjoint(("skipped", "failed")):
            print("nothing was measured or written; --device cpu (make bench-gpu DEVICE=cpu UPDATES=1) is a dry run")
            return 1
        with out.open("w" if arm is ARMS[0] else "a") as file:
            file.write(json.dumps(line | figures) + "\n")
        page = write_page(out)
    print(f"{out} and {page}: written")
    return 0


def measured(arm: Arm, setting: tuple[Any, ...], limit: float) -> dict[str, Any]:
    """The last figures of an arm that runs in a process of its own, at most `limit` seconds."""
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(kind)
    if kind == "forkserver":
        context.set_forkserver_preload(["benchmarks.gpu_arms"])  # imports take seconds, and CUDA is not started there
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(arm, setting, sending, multiprocessing.get_start_method()))
    process.start()
    sending.close()
    end, figures = time.monotonic() + limit, dict[str, Any]()
    try:
        while receiving.poll(max(0.0, end - time.monotonic())):
            message = receiving.recv()
            if message is None:
                return figures
            figures = message
        return figures | {"stopped": f"after {limit:.0f} s"}
    except EOFError:
        process.join()
        return figures | {"failed": f"the process ended with exit code {process.exitcode}"}
    finally:
        with suppress(ProcessLookupError, AttributeError):
            os.killpg(process.pid, signal.SIGKILL)  # the workers of a loader or compiler too
        process.kill()
        process.join()


def work(arm: Arm, setting: tuple[Any, ...], sending: Any, usual: str) -> None:
    """The process of an arm: sends each of its figures, and None at its end."""
    if hasattr(os, "setsid"):
        os.setsid()
    multiprocessing.set_start_method(usual, force=True)  # loaders start their workers as they do elsewhere
    os.dup2(2, 1)  # the screen's lines are the parent's
    for figures in guarded(arm, setting):
        sending.send(figures)
    sending.send(None)


def guarded(arm: Arm, setting: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """The arm's figures; what it lacks or how it failed is a figure too, beside the last ones."""
    figures: dict[str, Any] = {}
    try:
        from benchmarks import gpu_arms

        for figures in gpu_arms.run(gpu_arms.Setting(*setting), arm.function, arm.arguments):
            yield figures
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        if isinstance(error, ModuleNotFoundError):
            package = (error.name or text).partition(".")[0]
            yield figures | {"skipped": f"needs {package}, which is not installed here"}
        elif isinstance(error, BackendUnavailable):
            yield figures | {"skipped": text}
        else:
            traceback.print_exc()
            yield figures | {"failed": f"{type(error).__name__}: {text}"}


def write_page(lines: Path) -> Path:
    """Write the Markdown page beside the file of JSON lines and return its path; a line that was cut off is ignored."""
    results = []
    for line in lines.read_text().splitlines():
        with suppress(json.JSONDecodeError):
            results.append(json.loads(line))
    page = lines.with_suffix(".md")
    page.write_text(text(results))
    return page


def text(lines: list[dict[str, Any]]) -> str:
    """The page, Markdown: the machine, a table for each kind of arm, and what was not measured."""
    machine = next((line for line in lines if line["arm"] == "machine"), {})
    facts = ", ".join(f"{key} {value}" for key, value in flat(machine) if key not in _ABOUT and value is not None)
    on_cuda = str(machine.get("device", "cuda")).startswith("cuda")
    dry_run = "" if on_cuda else " A dry run on the CPU: no figure means anything."
    page = [
        f"# Benchmarks: {machine.get('name', 'unknown device')}",
        "",
        f"{machine.get('date', '')}, {facts}; {sum(line['seconds'] for line in lines):.0f} s in all. Written by "
        f"`make bench-gpu`.{dry_run}",
        "",
        "Best of the turns, which alternate between the sides; `spread` is how far the slowest one is below. `ratio` "
        "is Tandem over timm. `mfu`: three times the operations of the forward pass over the card's dense bf16 peak, "
        "empty where that is not in the table of `benchmarks/gpu_arms.py`.",
    ]
    function_of = {arm.name: arm.function for arm in ARMS}
    for function, title in TITLES.items():
        rows = [line for line in lines if function_of[line["arm"]] == function and "images_per_second" in line]
        page += _table(title, rows)
    ended = [f"- {line['arm']}: {kind}: {line[kind]}" for line in lines for kind in _ABOUT[4:] if kind in line]
    page += ["", "## Not measured, or in part", "", *ended] if ended else []
    return "\n".join([*page, ""])


def _table(title: str, lines: list[dict[str, Any]]) -> list[str]:
    """The lines as rows; their columns are the names of the figures, without `images_per_second.`'s."""
    rows = [{key: value for key, value in flat(line) if key not in _ABOUT and value is not None} for line in lines]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return []
    head = [column.replace("images_per_second.", "images/s ") for column in columns]
    cells = [" | ".join(str(row.get(column, "")) for column in columns) for row in rows]
    rows_of_page = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {row} |" for row in cells)]
    return ["", f"## {title}", "", *rows_of_page]
