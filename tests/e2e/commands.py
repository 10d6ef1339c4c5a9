"""Runs as a user starts them, in processes of their own, so that they can be killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]


def words(root: Path, out: Path, *more: str) -> list[str]:
    """A small run of the numpy engine, too long to end before the test ends it, with a checkpoint after each step."""
    given = ["--data.root", str(root), "--out", str(out), "--name", "run", "--model", "convnext_atto"]
    given += ["--weights", "none", "--data.image_size", "16", "--data.workers", "2", "--train.batch_size", "8"]
    given += [
        "--train.epochs",
        "5000",
        "--optim.lr",
        "0.01",
        "--checkpoint.every_steps",
        "1",
        "--data.audit",
        "false",
        *more,
    ]
    return given


def start(engine: str, given: list[str], before: str = "pass") -> subprocess.Popen[str]:
    """`train_ENGINE.py GIVEN`, after the statement `before`."""
    code = f"import sys\nimport tests.numpy_engine\nfrom training.cli import main\n{before}\nsys.exit(main({engine!r}))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *given], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Until `what` is so; fails when the process ends before."""
    end = time.monotonic() + seconds
    while not what():
        if process.poll() is not None:
            raise AssertionError(f"it ended with {process.returncode}: {process.communicate()}")
        if time.monotonic() > end:
            process.kill()
            raise AssertionError(f"not within {seconds} s: {process.communicate()}")
        time.sleep(0.02)
