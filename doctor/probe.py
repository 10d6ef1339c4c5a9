"""Runs a probe in a process of its own, so that a framework that crashes on import takes nothing else with it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
_PATIENCE = 180.0  # seconds; a first import from a slow disk takes a minute


def steps(wanted: Sequence[Callable[[], dict[str, Any]]]) -> None:
    """Print what the steps report, one after the other, as a JSON line before each step and at the end.

    `step` is the step that is begun, absent when all are done; `error` is that of the first step that fails.
    """
    report: dict[str, Any] = {}
    for step in wanted:
        begun = {"step": step.__name__.strip("_")}
        print(json.dumps(report | begun, default=str), flush=True)
        try:
            report |= step()
        except Exception as error:  # a broken framework raises anything
            print(json.dumps(report | begun | {"error": f"{type(error).__name__}: {_line(str(error))}"}, default=str))
            return
    print(json.dumps(report, default=str))


def run(module: str) -> dict[str, Any]:
    """The last line that the probe `module` prints (see `steps`), with an `error` where its process crashes."""
    done = process("-m", module)
    report: dict[str, Any] = {}
    for line in done.stdout.splitlines():  # a library may print lines of its own
        with suppress(ValueError):
            value = json.loads(line)
            report = value if isinstance(value, dict) else report
    if done.returncode and "error" not in report:
        report["error"] = _end(done)
    return report


def process(*words: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter from the checkout, without warnings; a timeout gives the exit code 124."""
    command = [sys.executable, "-W", "ignore", *words]
    try:
        return subprocess.run(
            command, cwd=_ROOT, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {_PATIENCE:.0f} s")


def import_error(names: Sequence[str]) -> str:
    """Why the modules cannot be imported in one process; "" where they can."""
    done = process("-c", "; ".join(f"import {name}" for name in names))
    return _end(done) if done.returncode else ""


def _end(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"crashes with {signal.Signals(-done.returncode).name}"
    return _line(done.stderr.strip().rpartition("\n")[2]) or f"ends with exit code {done.returncode}"


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
