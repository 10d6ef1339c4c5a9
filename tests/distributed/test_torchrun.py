"""What a user types: torchrun, with a process that dies in the middle, and with what is wrong in one process alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from backends.group import ALONE
from tests.distributed import cases
from tests.distributed.test_runs import curve, words
from tests.e2e.commands import ROOT, wait_for
from training.loop import checkpoint


@contextmanager
def torchrun(count: int, *given: str) -> Iterator[subprocess.Popen[str]]:
    """`torchrun --nproc_per_node COUNT GIVEN`; whatever is left of it at the end is killed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count), *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TANDEM_TORCH_DEVICE": "cpu"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment,
    )
    ranks: list[psutil.Process] = []
    try:
        yield process
    finally:
        if process.poll() is None:
            ranks = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGKILL)
        for rank in ranks:
            rank.kill()
        process.wait()


def rank_of(process: subprocess.Popen[str], rank: int, variable: str = "RANK") -> psutil.Process:
    """The process of a rank, which stands in a variable of its environment."""
    return next(p for p in psutil.Process(process.pid).children() if p.environ().get(variable) == str(rank))


def test_a_killed_process_costs_no_more_than_the_work_since_the_last_checkpoint(digits: Path, tmp_path: Path) -> None:
    more = ["--checkpoint.every_steps", "2", "--train.epochs", "4", "--train.micro_batch", "null", "--resume", "never"]
    given = words(digits, tmp_path / "killed", *more)
    with torchrun(3, "--max_restarts", "1", "train_torch.py", *given) as process:
        wait_for(lambda: bool([*tmp_path.glob("killed/*/fold_0/step_0000000[4-9]")]), process)
        rank_of(process, 1).kill()
        killed = time.monotonic()
        folder = next(tmp_path.glob("killed/*"))
        reached = int(checkpoint.steps(folder / "fold_0")[-1].name.removeprefix("step_"))
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert time.monotonic() - killed < 240
    assert "going on from" in output
    assert len([*tmp_path.glob("killed/*")]) == 1, "a restart goes on, also where the settings ask for a new run"
    resumed = next(line for line in output.splitlines() if "going on from" in line)
    assert int(resumed.partition("step_")[2].partition(":")[0]) >= reached
    unbroken = cases.run(ALONE, words(digits, tmp_path / "unbroken", *more))
    np.testing.assert_allclose(curve(folder), curve(unbroken), rtol=1e-4)


def test_a_network_that_diverges_is_one_line_of_all_processes(digits: Path, tmp_path: Path) -> None:
    more = ["--optim.lr", "1e38", "--optim.clip_norm", "0", "--schedule.warmup_epochs", "0", "--train.epochs", "1"]
    given = words(digits, tmp_path, *more, "--swa.epochs", "0", "--watchdog.max_skipped", "1000")
    with torchrun(2, "train_torch.py", *given) as process:
        output, _ = process.communicate(timeout=240)
    [line] = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "no validation score of 1 epoch is finite" in line
    status = json.loads(next(tmp_path.glob("*/status.json")).read_text())
    assert status["state"] == "failed" and f"error: {status['error']}" == line
