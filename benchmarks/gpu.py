"""`make bench-gpu`: the benchmarks that a CUDA device speeds up, each in a process of its own, into one page.

python -m benchmarks.gpu                   # docs/benchmarks_gpu.md; where there is no CUDA device, one line instead
python -m benchmarks.gpu --data DIR        # with other photographs
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.sources import PHOTOS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks_gpu.md"
# (module, its arguments; {data} is the photographs)
PLAN = (
    ("torch_step", ("--device", "cuda", "--data", "{data}", "--images", "5000")),
    ("loader", ("--data", "{data}")),
    ("infer", ("--data", "{data}", "--model", "convnext_base", "--size", "224")),
    ("mlx_step", ()),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the page; where there is no CUDA device, say so."""
    parser = argparse.ArgumentParser(description="The benchmarks on a CUDA device.")
    parser.add_argument("--data", type=Path, default=PHOTOS, help="a tar of photographs, or a folder")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print(f"bench-gpu: torch {torch.__version__} finds no CUDA device here, so nothing was measured or written")
        return 0
    parts, failed = [f"# Benchmarks on {torch.cuda.get_device_name()}\n"], 0
    for name, words in PLAN:
        if importlib.util.find_spec(f"benchmarks.{name}") is None:
            continue
        command = ["-m", f"benchmarks.{name}", *(word.format(data=arguments.data) for word in words), "--json"]
        print(f"python {' '.join(command)}", file=sys.stderr)
        done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True)
        failed += done.returncode != 0
        figures = json.loads(done.stdout) if done.returncode == 0 else {"failed": f"exit code {done.returncode}"}
        parts.append(section(name, command, figures))
    PAGE.write_text("\n".join(parts))
    print(f"{PAGE}: written")
    return 1 if failed else 0


def section(name: str, command: Sequence[str], figures: dict[str, Any]) -> str:
    """A benchmark's part of the page: its command, and each of its figures as a row."""
    rows = [f"| {key} | {value} |" for key, value in flat(figures)]
    return "\n".join([f"## {name}\n", f"`python {' '.join(command)}`\n", "| figure | value |", "|---|---|", *rows, ""])


def flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested figures as (dotted name, value)."""
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in flat(inner, f"{prefix}.{key}" if prefix else str(key))]
    return [(prefix, value)]


if __name__ == "__main__":
    sys.exit(main())
