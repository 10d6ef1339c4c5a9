"""`make bench`: every comparison on the CPU, each in a process of its own; writes docs/engineering/benchmarks.md.

The table has what is aimed at, as a ratio in one run; the page also every other figure, with its command. Accuracy
(`benchmarks.accuracy` and `benchmarks.finetune`, hours) and GPUs (`benchmarks.gpu`) have pages of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import PHOTOS, ROOT, Result, flat, markdown

PAGE = ROOT / "docs" / "engineering" / "benchmarks.md"


class Step(NamedTuple):
    """A script of this folder with its arguments, {data} being the photographs; `name` is that of its figures."""

    name: str
    script: str
    words: tuple[str, ...] = ()


class Goal(NamedTuple):
    """A figure by its dotted name, `*` standing for each key; what it is, what is aimed at, and where its spread is."""

    figure: str
    what: str
    aim: str = ""
    spread: str = ""


CPU = (
    Step("loader", "loader", ("--data", "{data}")),
    Step("torch_step", "step", ("--engine", "torch", "--data", "{data}")),
    Step("mlx_step", "step", ("--engine", "mlx")),
    Step("infer", "infer", ("--data", "{data}", "--images", "500")),
    Step("checkpoint", "checkpoint"),
    Step("startup", "startup", ("--data", "{data}")),
    Step("fit", "fit"),
    Step("audit", "audit", ("--data", "{data}")),
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
    Goal("torch_step.ratio_timm", "torch: trained images a second, ours to timm's loop", ">= 1"),
    Goal("torch_step.ratio_timm_files", "torch: the same with JPEG files"),
    Goal("mlx_step.models.*.ratio_mlx_image", "MLX: trained images a second, ours to mlx-image's trainer", ">= 1"),
    Goal("mlx_step.loop_over_bare", "MLX: time of our loop, the bare step = 1", "<= 1.03"),
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
    results = {step.name: measured(step, arguments.data) for step in CPU}
    text = page(results)
    PAGE.write_text(text)
    print(text.partition("\n## ")[0])
    print(f"{PAGE}: written")
    return int(any(isinstance(result, int) for result in results.values()))


def measured(step: Step, data: Path) -> Result | int:
    """A script's result, or the exit code where it printed none; its progress goes to standard error."""
    words = ["-m", f"benchmarks.{step.script}", *(word.format(data=data) for word in step.words), "--json"]
    print(f"python {' '.join(words)}", file=sys.stderr)
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        return done.returncode


def page(results: dict[str, Result | int]) -> str:
    """The table of what is aimed at, and a section for each script."""
    lines = [
        "# Benchmarks: CPU",
        "",
        "Ratios within one run; each section has its machine, date, n and command. Written by `make bench`.",
        "",
        *("| figure | measured | aim | spread |", "|---|---|---|---|", *summary(results), ""),
    ]
    for name, result in results.items():
        text = f"failed with exit code {result}\n" if isinstance(result, int) else markdown(result)
        lines += [f"## {name}", "", text]
    return "\n".join(lines)


def summary(results: dict[str, Result | int]) -> Iterable[str]:
    """A row for each figure of `GOALS` that was measured."""
    for goal in GOALS:
        script, _, path = goal.figure.partition(".")
        result = results.get(script)
        if isinstance(result, dict):
            spread = dict(flat(result["figures"])).get(goal.spread, "")
            for key, value in chosen(result["figures"], path.split(".")):
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


if __name__ == "__main__":
    sys.exit(main())
