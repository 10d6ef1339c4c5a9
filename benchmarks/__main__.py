"""`python -m benchmarks [NAME]`: one comparison, or all of those on the CPU, each in a process of its own, as a page.

The page, docs/engineering/benchmarks.md, has a table of what is aimed at and every figure with its command. Accuracy
(`accuracy` and `finetune`, hours) and GPUs (`gpu`) have pages of their own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import common
from benchmarks.common import ROOT, Result, flat, markdown
from config.errors import ConfigError
from config.program import entry
from config.program.parser import Parser
from config.text import choices

PAGE = ROOT / "docs" / "engineering" / "benchmarks.md"
PROG = "python -m benchmarks"

# The file of each comparison, and its description.
FILES = {
    "loader": ("loader", "images prepared for training, beside timm and torchvision"),
    "step": ("steps.step", "training steps, beside timm or mlx-image"),
    "infer": ("infer", "prediction by an ensemble with TTA, beside timm and ttach"),
    "startup": ("commands", "seconds to --help and to the first update"),
    "checkpoint": ("commands", "the share of an epoch that saving takes"),
    "fit": ("commands", "time and memory of fitting an ensemble"),
    "convert": ("commands", "time and memory of conversions"),
    "audit": ("audit", "planted copies that the audit finds, and what it costs"),
    "streaming": ("streaming", "training from shards over HTTP"),
    "ranks": ("ranks", "several processes on the CPU, and what they send"),
    "accuracy": ("accuracy", "accuracy from scratch, beside timm"),
    "finetune": ("finetune", "accuracy of fine-tuning, beside timm and a linear probe"),
    "precisions": ("precisions", "precisions of converted networks on labelled photographs"),
    "gpu": ("gpu", "ten minutes on a CUDA device"),
}


class Goal(NamedTuple):
    """A figure by its dotted name, `*` standing for each key; what it is, what is aimed at, and where its spread is."""

    figure: str
    what: str
    aim: str = ""
    spread: str = ""


# The comparisons of the page, by the name of their figures, {data} being the photographs.
CPU = {
    "loader": ("loader", "--data", "{data}"),
    "torch_step": ("step", "--engine", "torch", "--data", "{data}"),
    "mlx_step": ("step", "--engine", "mlx"),
    "infer": ("infer", "--data", "{data}", "--images", "500"),
    "checkpoint": ("checkpoint",),
    "startup": ("startup", "--data", "{data}"),
    "fit": ("fit",),
    "audit": ("audit", "--data", "{data}"),
}
GOALS = (
    Goal("loader.ratio_files", "training images from files, per CPU second: ours to timm", ">= 2.2", "spread.files"),
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
    """Run what the words name; 1 where a figure misses its aim or a comparison failed, 2 for a wrong command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    return entry.run(lambda words: run(*words) if words and words[0] in FILES else run_all(words), words, PROG)


def run(name: str, *words: str) -> int:
    """Run a comparison and print its result."""
    sys.argv = [name, *words]  # which parsers and results quote
    module = importlib.import_module(f"benchmarks.{FILES[name][0]}")
    if name not in common.COMPARISONS:  # it parses its own command line
        return int(module.main() or 0)
    measure, options = common.COMPARISONS[name]
    arguments = common.parser(module.__doc__, *options).parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    print(json.dumps(result, indent=1) if arguments.json else markdown(result))
    return int(bool(result["missed"]))


def run_all(words: list[str]) -> int:
    """Measure all comparisons of the CPU, print the table and write the page."""
    if words and not words[0].startswith("-"):
        raise ConfigError(f"{words[0]}: no such comparison{choices(words[0], FILES)}")
    listed = "\n".join(f"  {name:12}{what}" for name, (_, what) in FILES.items())
    about = f"All comparisons of the CPU, as {PAGE.relative_to(ROOT)}, or one alone, on the screen:\n\n{listed}"
    usage, as_it_stands = f"{PROG} [NAME] [options]", argparse.RawDescriptionHelpFormatter
    parser = Parser(PROG, usage=usage, description=about, formatter_class=as_it_stands)
    parser.add_argument("--data", type=Path, default=common.PHOTOS, help="a tar of photographs, or a folder")
    entry.add_options(parser)
    data = common.existing(parser.parse_args(words).data)
    results = {name: measured(words, data) for name, words in CPU.items()}
    text = page(results)
    PAGE.write_text(text)
    print(text.partition("\n## ")[0])
    print(f"{PAGE}: written")
    return int(any(isinstance(result, int) for result in results.values()))


def measured(comparison: Sequence[str], data: Path) -> Result | int:
    """A comparison's result, or the exit code where it printed none; its progress goes to standard error."""
    words = ["-m", "benchmarks", *(word.format(data=data) for word in comparison), "--json"]
    print(f"python {' '.join(words)}", file=sys.stderr)
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        return done.returncode


def page(results: dict[str, Result | int]) -> str:
    """The table of what is aimed at, and a section for each comparison."""
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
        name, _, path = goal.figure.partition(".")
        result = results.get(name)
        if isinstance(result, dict):
            figures, pattern = dict(flat(result["figures"])), re.escape(path).replace(r"\*", "(.+)")
            for figure, value in figures.items():
                if value is not None and (match := re.fullmatch(pattern, figure)):
                    what = " ".join([goal.what, *(f"({key})" for key in match.groups())])
                    yield f"| {what} | {value} | {goal.aim} | {figures.get(goal.spread, '')} |"


if __name__ == "__main__":
    sys.exit(main())
