"""Folds of a campaign spread over the processes of a real torchrun; signals that save first."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.commands import ROOT, start, wait_for, words
from training.loop import checkpoint

TWO = """
weights: none
folds: {strategy: stratified, n_splits: 2}
data: {image_size: 16, workers: 1, audit: false}
train: {batch_size: 8}
optim: {lr: 0.01}
members:
  - {name: first, model: convnext_atto}
  - {name: second, model: resnet18}
"""
SCRIPT = """
import os, sys
from training import cli
from training.report import summary
from training.run import fold
summary.plots.write = summary.report.write = lambda *_: None
{before}
sys.exit(cli.main('numpy'))
"""
# The second process finds its device broken at its first fold.
BROKEN = """
def broken(*_):
    raise RuntimeError("no kernel image")
if os.environ["RANK"] == "1":
    fold.train = broken
"""


def torchrun(root: Path, tmp_path: Path, *more: str, before: str = "") -> subprocess.Popen[str]:
    """Two processes of the NumPy engine in a session of their own, which signals can be sent to as a terminal does."""
    pytest.importorskip("torch")
    (tmp_path / "two.yaml").write_text(TWO)
    (tmp_path / "train_numpy.py").write_text(SCRIPT.format(before=before))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / "train_numpy.py"), "--config", str(tmp_path / "two.yaml"), "--data.root", str(root)]
    command += ["--out", str(tmp_path / "runs"), *more]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, start_new_session=True, **pipes)


def results(tmp_path: Path) -> list[str]:
    (folder,) = (tmp_path / "runs").iterdir()
    return sorted("/".join(path.parts[-3:-1]) for path in folder.glob("members/*/fold_*/result.yaml"))


EVERY = ["first/fold_0", "first/fold_1", "second/fold_0", "second/fold_1"]


def test_two_processes_share_the_folds_and_each_line_says_whose_it_is(digits: Path, tmp_path: Path) -> None:
    process = torchrun(digits, tmp_path, "--mode", "train", "--spread", "folds", "--train.epochs", "8")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert results(tmp_path) == EVERY
    assert all(re.match(r"\[rank [01]\] ", line) for line in out.splitlines())
    begun = re.findall(r"\[rank (\d)\] (\w+: fold \d)\n", out)
    assert sorted(fold for _, fold in begun) == ["first: fold 0", "first: fold 1", "second: fold 0", "second: fold 1"]
    assert {rank for rank, _ in begun} == {"0", "1"}


def test_a_process_that_cannot_train_leaves_its_folds_to_the_others(digits: Path, tmp_path: Path) -> None:
    given = ("--mode", "train", "--spread", "folds", "--train.epochs", "3")
    process = torchrun(digits, tmp_path, *given, before=BROKEN)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "[rank 1] error: no kernel image; this process stops" in err
    assert results(tmp_path) == EVERY


def test_ctrl_c_under_torchrun_saves_in_every_process(digits: Path, tmp_path: Path) -> None:
    """The terminal sends SIGINT to all, and torchrun sends it to its processes once more."""
    process = torchrun(digits, tmp_path, "--mode", "train", "--spread", "folds", "--train.epochs", "5000")
    wait_for(lambda: len(list((tmp_path / "runs").glob("*/members/*/fold_*/history.csv"))) == 2, process)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=100)
    stopped = re.findall(r"\[rank (\d)\] stopped; everything is saved\. Go on with: (.*)", out)
    assert {rank for rank, _ in stopped} == {"0", "1"}
    (folder,) = (tmp_path / "runs").iterdir()
    assert stopped[0][1] == f"python train_numpy.py --mode train --spread folds --resume {folder}"
    for place in (folder / "members" / "first").glob("fold_*"):
        assert checkpoint.newest(place) is not None


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ((), "torchrun started 2 processes, and a run of the numpy engine takes one"),
        (("--mode", "train"), "torchrun started 2 processes: add --spread folds"),
        (("--mode", "fit"), "torchrun started 2 processes, and --mode fit takes one"),
        (("--mode", "train", "--spread", "folds", "--resume", "never"), "give --name NAME for a new campaign"),
        (("--mode", "train", "--spread", "members"), "spread: found 'members' (command line); expected folds"),
        (("--spread", "folds"), "spread: goes with --mode train, tune, full"),
    ],
)
def test_what_several_processes_cannot_do_is_one_line(
    more: tuple[str, ...], line: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    process = start("numpy", [*words(digits, tmp_path), *more])
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert line in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*")), "nothing is made"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143)])
def test_signals_of_a_queue_save_first(sent: signal.Signals, code: int, digits: Path, tmp_path: Path) -> None:
    given = words(digits, tmp_path, "--checkpoint.every_steps", "0", "--checkpoint.every_epochs", "1000")
    process = start("numpy", given)
    wait_for(lambda: (tmp_path / "run" / "fold_0" / "history.csv").exists(), process)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Go on with: python train_numpy.py --resume" in out
    assert "Traceback" not in err
    last = checkpoint.newest(tmp_path / "run" / "fold_0")
    assert last is not None
    step = checkpoint.read_state(last)["loop"]
    history = (tmp_path / "run" / "fold_0" / "history.csv").read_text().splitlines()
    assert step["epoch"] >= len(history) - 1 > 0, "nothing that was trained is lost"
