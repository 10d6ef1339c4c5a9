"""`make bench`: every comparison on the CPU, each in a process of its own; writes docs/engineering/benchmarks.md.

The table has what is aimed at, as a ratio in one run; the page also every other figure, with its command. Accuracy
(`benchmarks.accuracy`, hours), parity (`make parity`) and GPUs (`benchmarks.gpu`) have pages of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import PHOTOS, flat, machine

DOCS = Path(__file__).parents[1] / "docs" / "engineering"
_SAID_ABOVE = ("json", "machine", "cores", "date")  # at the head of the page, or in the command


class Step(NamedTuple):
    """A script of this folder and its arguments; {data} is the photographs."""

    name: str
    words: tuple[str, ...] = ()


class Goal(NamedTuple):
    """A figure by its dotted name, `*` standing for each key; what it is, what is aimed at, and where its spread is."""

    figure: str
    what: str
    aim: str = ""
    spread: str = ""


CPU = (
    Step("loader", ("--data", "{data}")),
    Step("torch_step", ("--data", "{data}")),
    Step("mlx_step"),
    Step("mlx_traffic", ("--model", "convnext_tiny", "vit_small_patch16_224", "--batch", "16", "--precision", "bf16")),
    Step("infer", ("--data", "{data}", "--images", "500")),
    Step("checkpoint"),
    Step("startup", ("--data", "{data}")),
    Step("fit"),
    Step("audit", ("--data", "{data}")),
)
GOALS = (
    Goal(
        "loader.ratio_files", "training images from JPEG files, per CPU second: ours to timm", ">= 2.2", "spread.files"
    ),
    Goal("loader.ratio_cached", "the same from the cache, epochs 2 and later", ">= 15", "spread.cached"),
    Goal("loader.ratio_jpegs", "the same from the cache of JPEGs", "", "spread.jpegs"),
    Goal("loader.first_batch_s", "seconds to a loader's first batch", "< 1"),
    Goal("loader.threads.*.8", "speed per CPU second with 8 threads, 1 thread = 1", ">= 0.85"),
    Goal("loader.threads.*.of_processes", "the same, two processes of 1 thread = 1"),
    Goal("torch_step.loop_over_bare", "torch: time of our loop, the bare step = 1"),
    Goal("torch_step.cached_over_bare", "torch: the same with cached images"),
    Goal("torch_step.ratio_timm_synthetic", "torch: trained images a second, ours to timm's loop", ">= 1"),
    Goal("torch_step.ratio_timm_files", "torch: the same with JPEG files", ""),
    Goal("mlx_step.ratios.*", "MLX: trained images a second, ours to mlx-image's trainer", ">= 1"),
    Goal("mlx_step.loop", "MLX: what our loop costs over the bare step", "<= 0.03"),
    Goal("infer.ratio_timm", "5 members x 3 views: ours to timm's script for each", ">= 3"),
    Goal("infer.ratio_ttach", "the same: ours to ttach for each member", ">= 1.5"),
    Goal("infer.ratio_plain", "the same: ours to the bare forward passes as torch comes"),
    Goal("infer.overhead", "the same: time beside the forward passes, their sum = 1", "< 0.1", "spread.runner"),
    Goal("checkpoint.background.share", "share of an epoch that saving takes", "< 0.02"),
    Goal("startup.help_s.*", "seconds to --help", "< 0.5"),
    Goal("startup.update_s.*", "seconds to the first update of ConvNeXt-Base", "< 15"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the page; the exit code is 1 when a script failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="All benchmarks, as one page.")
    parser.add_argument("--data", type=Path, default=PHOTOS, help="a tar of photographs, or a folder")
    arguments = parser.parse_args(argv)
    if not arguments.data.exists():
        print(f"{arguments.data}: does not exist; give --data a tar or a folder of photographs", file=sys.stderr)
        return 2
    found = {step.name: measured(step, arguments.data) for step in CPU}
    page = DOCS / "benchmarks.md"
    text = written("CPU", found)
    page.write_text(text)
    print(text.partition("\n## ")[0])
    print(f"{page}: written")
    return int(any("failed" in figures for _, figures in found.values()))


def measured(step: Step, data: Path) -> tuple[str, dict[str, Any]]:
    """A script's command and its figures; its words on how far it is go to standard error."""
    words = ["-m", f"benchmarks.{step.name}", *(word.format(data=data) for word in step.words), "--json"]
    command = f"python {' '.join(words)}"
    print(command, file=sys.stderr)
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    try:
        return command, dict(json.loads(done.stdout))
    except ValueError:
        return command, {"failed": f"exit code {done.returncode}"}


def written(title: str, found: dict[str, tuple[str, dict[str, Any]]]) -> str:
    """The page: the machine, the table of what is aimed at, and a section for each script."""
    on = machine("torch", "timm", "mlx", "mlx-image")
    versions = ", ".join(f"{name} {number}" for name, number in on["versions"].items())
    head = (
        f"# Benchmarks: {title}\n\n{on['date']}, {on['machine']}, {on['cores']} cores, {versions}. Ratios within one "
        "run; the load, its own included, stands in the section of a script. Written by `make bench`.\n"
    )
    table = ["| figure | measured | aim | spread |", "|---|---|---|---|", *summary(found), ""]
    return "\n".join([head, *table, *(section(name, *rest) for name, rest in found.items())])


def summary(found: dict[str, tuple[str, dict[str, Any]]]) -> Iterable[str]:
    """A row for each figure of `GOALS` that was measured."""
    for goal in GOALS:
        script, _, path = goal.figure.partition(".")
        if script in found:
            figures = found[script][1]
            spread = dict(flat(figures)).get(goal.spread, "")
            for key, value in chosen(figures, path.split(".")):
                what = f"{goal.what} ({key})" if key else goal.what
                yield f"| {what} | {value} | {goal.aim} | {spread} |"


def chosen(value: Any, path: Sequence[str], key: str = "") -> list[tuple[str, Any]]:
    """The figures at a dotted path, each with the keys that `*` stood for."""
    if not path:
        return [(key, value)]
    if not isinstance(value, dict):
        return []
    if path[0] != "*":
        return chosen(value[path[0]], path[1:], key) if path[0] in value else []
    return [pair for name, inner in value.items() for pair in chosen(inner, path[1:], f"{key} {name}".strip())]


def section(name: str, command: str, figures: dict[str, Any]) -> str:
    """A script's part of the page: its command, each of its figures as a row, and below what it quotes."""
    told = [(key, value) for key, value in flat(figures) if key not in _SAID_ABOVE and value not in (None, [])]
    rows = [f"| {key} | {value} |" for key, value in told if not quotable(value)]
    quoted = [line for _, value in told if quotable(value) for line in value]
    page = [f"## {name}\n", f"`{command}`\n", "| figure | value |", "|---|---|", *rows, ""]
    return "\n".join([*page, "```text", *quoted, "```", ""] if quoted else page)


def quotable(value: Any) -> bool:
    """Whether it is lines of text."""
    return isinstance(value, list) and all(isinstance(line, str) for line in value)


if __name__ == "__main__":
    sys.exit(main())
