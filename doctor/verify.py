"""`make verify-mac` and `make verify-gpu`: what must be run on the hardware itself, as one Markdown file to send back.

    python -m doctor.verify mac                # about an hour on an M-series Mac
    python -m doctor.verify gpu                # about half an hour on a CUDA machine
    python -m doctor.verify mac --dry_run      # seconds, on any machine: that every step can be started

Each step is a process of its own with a time limit; one that fails does not end the others. The page is written anew
after each step, so that a run that is cut off is still of use.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from config.program import entry
from config.program.parser import Parser
from doctor import host

_SHOWN = 200  # lines of the output of a step


@dataclass(frozen=True)
class Step:
    """A command of this checkout. `dry` is what --dry_run does in its place; `minutes` is its limit."""

    title: str
    words: tuple[str, ...]
    dry: tuple[str, ...]
    minutes: float = 60


_DEMO = Step(
    "The main job: train, convert, ensemble, submit", ("-m", "training.demo"), ("-m", "training.demo", "--help")
)


@dataclass(frozen=True)
class Result:
    """What became of a step: its exit code (124: the time limit), seconds, and the last lines that it printed."""

    step: Step
    code: int
    seconds: float
    lines: Sequence[str]

    @property
    def verdict(self) -> str:
        """One cell of the table: pytest's own counts where there are any."""
        counts = [line for line in self.lines if re.search(r"^=*\s*\d+ (passed|failed|error).* in [\d.]+ ?s", line)]
        ended = {0: "passed", 124: "stopped at its time limit"}.get(self.code, f"**failed**, exit code {self.code}")
        return f"{ended}: {counts[-1].strip('= ')}" if counts else ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run all steps and write the page; the exit code is 1 where a step failed."""
    return entry.run(_run, argv, "python -m doctor.verify")


def steps(machine: str, folder: Path) -> list[Step]:
    """The steps for a `mac` or a `gpu` machine; `folder` is for what they write."""
    common = [
        Step("What is installed", ("-m", "doctor"), ("-m", "doctor", "--help")),
        _tests("Contract of the engines, on their best device", "tests/contract"),
        _tests("Parity with timm and torch", "tests/parity"),
    ]
    if machine == "gpu":
        return [
            *common,
            _tests("The torch engine", "tests/unit/test_torch_step.py", "tests/unit/test_torch_devices.py"),
            _tests("torch.compile", "tests/unit/test_compiling.py"),
            _tests("ONNX", "tests/convert/test_onnx.py"),
            *_trained(folder, "torch"),
            _converted("ONNX Runtime", folder, "onnx", "fp32 fp16 int8"),
            _DEMO,
            _make("Speed on this GPU", "bench-gpu"),
        ]
    return [
        *common,
        _tests("What Metal refuses, by the traced graph", "tests/metal"),
        _tests("Conversion and Core ML", "tests/convert"),
        Step("Faster gradients of this chip", ("-m", "backends", "tune", "--json"), ("-m", "backends", "--help")),
        *_trained(folder, "torch", "mlx"),
        _converted("Core ML on every compute unit, ONNX Runtime", folder, "onnx coreml", "fp32 fp16 int8 w8 palette4"),
        _DEMO,
        _make("Speed of the MLX step on Metal", "bench-metal"),
    ]


def _trained(folder: Path, *engines: str) -> Iterator[Step]:
    """The demo's digits, and a fold of them trained on each engine."""
    digits = str(folder / "digits")
    yield Step("Images", ("-m", "data.demo", digits), ("-m", "data.demo", "--help"))
    for engine in engines:
        words = (f"train_{engine}.py", "--config", "demo", "--data.root", digits, "--folds.train", "[0]")
        out = ("--out", str(folder), "--name", engine)
        yield Step(f"Training, {engine}", (*words, *out), (*words, "--print_config"))


def _converted(title: str, folder: Path, formats: str, precisions: str) -> Step:
    words = ("-m", "convert", str(folder / "torch"), "--to", *formats.split(), "--precision", *precisions.split())
    return Step(title, (*words, "--overwrite", "--verify"), ("-m", "convert", "--help"))


def _tests(title: str, *paths: str) -> Step:
    return Step(title, ("-m", "pytest", "-q", *paths), ("-c", f"import os, pytest; [os.stat(p) for p in {paths}]"))


def _make(title: str, target: str) -> Step:
    python = f"PY={sys.executable}"
    return Step(title, ("make", python, target), ("make", "--dry-run", python, target))


def _run(words: list[str]) -> int:
    parser = Parser(
        prog="python -m doctor.verify", description="Run what needs this hardware, and write one page to send back."
    )
    entry.add_options(parser)
    parser.add_argument("machine", choices=("mac", "gpu"), help="a Mac with an M-series chip, or a CUDA machine")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: verify_MACHINE.md)")
    parser.add_argument(
        "--dry_run", action="store_true", help="only see that every step can be started, on any machine"
    )
    options = parser.parse_args(words)
    page = options.out or Path(f"verify_{options.machine}.md")
    folder = page.with_suffix("").absolute()
    done: list[Result] = []
    for step in steps(options.machine, folder):
        print(f"{step.title} ...", flush=True)
        done.append(_done(step, options.dry_run))
        print(f"  {done[-1].verdict} ({done[-1].seconds:.0f} s)", flush=True)
        page.write_text("\n".join(_page(options.machine, done, options.dry_run)) + "\n", encoding="utf-8")
    print(f"wrote {page}: please attach it to an issue, or send it back as it is")
    return int(any(result.code for result in done))


def _done(step: Step, dry: bool) -> Result:
    words = step.dry if dry else step.words
    command = list(words) if words[0] == "make" else [sys.executable, *words]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=host.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=60 * step.minutes,
            check=False,
        )
        code, printed = done.returncode, done.stdout
    except subprocess.TimeoutExpired as stopped:
        text = stopped.stdout or b""
        code, printed = 124, text.decode(errors="replace") if isinstance(text, bytes) else text
    except OSError as error:  # there is no make
        code, printed = 127, str(error)
    return Result(step, code, time.monotonic() - began, [host.home(line) for line in printed.splitlines()[-_SHOWN:]])


def _page(machine: str, done: Sequence[Result], dry: bool) -> Iterator[str]:
    yield f"# Verified on a {'Mac' if machine == 'mac' else 'CUDA machine'}{' (dry run)' if dry else ''}"
    yield f"\n{date.today()}, {platform.platform()}, commit {host.commit() or 'unknown'}\n"
    yield from ("| step | result | minutes |", "|---|---|---|")
    yield from (f"| {r.step.title} | {r.verdict} | {r.seconds / 60:.1f} |" for r in done)
    for result in done:
        words = result.step.dry if dry else result.step.words
        command = " ".join(words if words[0] == "make" else ("python", *words))
        fence = "```"
        yield f"\n## {result.step.title}\n\n{fence}text\n$ {host.home(command)}"
        yield from result.lines
        yield fence


if __name__ == "__main__":
    sys.exit(main())
