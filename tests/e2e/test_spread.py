"""Folds of a campaign spread over the processes of a real torchrun; signals that save first."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
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
import tests.numpy_engine
from training import cli
from training.report import summary
from training.run import fold
summary.plots.write = summary.report.write = lambda *_: None
{before}
sys.exit(cli.main('numpy'))
"""
# The device of the second process is broken; the first one does not begin before the second has a fold, too.
BREAKS = """
import pathlib, time
out, whole = pathlib.Path(sys.argv[sys.argv.index("--out") + 1]), fold.train
def train(*given):
    if os.environ["RANK"] == "1":
        raise RuntimeError("no kernel image")
    while len(list(out.glob("*/members/*/fold_*/.claim_*"))) < 2:
        time.sleep(0.05)
    return whole(*given)
fold.train = train
"""


def torchrun(root: Path, tmp_path: Path, *more: str, before: str = BREAKS) -> subprocess.Popen[str]:
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


LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
EVERY = ["first/fold_0", "first/fold_1", "second/fold_0", "second/fold_1"]


def test_two_processes_share_the_folds_and_one_that_breaks_leaves_the_rest_to_the_other(
    digits: Path, tmp_path: Path
) -> None:
    process = torchrun(digits, tmp_path, "--mode", "train", "--spread", "folds", "--train.epochs", "8")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert results(tmp_path) == EVERY
    assert all(re.match(r"\[rank [01]\] ", line) for line in out.splitlines())
    begun = re.findall(r"\[rank (\d)\] (\w+: fold \d)\n", out)
    (broken,) = (fold for rank, fold in begun if rank == "1")
    assert "[rank 1] error: no kernel image; this process stops" in err
    assert Counter(fold for _, fold in begun) == {
        fold: 1 + (fold == broken) for fold in ("first: fold 0", "first: fold 1", "second: fold 0", "second: fold 1")
    }


def test_the_first_process_says_a_wrong_setting_also_where_it_is_the_last_to_find_it(
    digits: Path, tmp_path: Path
) -> None:
    late = "import time\nif os.environ['RANK'] == '0': time.sleep(3)"
    _, err = torchrun(digits, tmp_path, "--train.epohcs", "3", before=late).communicate(timeout=100)
    assert err.count("error: train.epohcs: no such setting") == 1
    assert "stopped" not in err


def test_an_error_of_a_later_process_alone_is_said_by_it_where_the_launcher_lets_it_live(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**LAUNCHED, "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    process = start("numpy", words(digits, tmp_path), before="from training import cli\ncli._FIRST = 0.1")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.splitlines() == ["error: the numpy engine trains in one process alone; start it without torchrun"]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ((), "the numpy engine trains in one process alone; start it without torchrun"),
        (("--dry_run",), "torchrun started 2 processes, and --dry_run measures one: start it without torchrun"),
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
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    process = start("numpy", [*words(digits, tmp_path), *more])
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert line in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*")), "nothing is made"


@pytest.mark.parametrize(
    ("sent", "times", "launched", "code"),
    [(signal.SIGUSR1, 1, False, 75), (signal.SIGTERM, 2, True, 143)],  # torchrun repeats what the group was sent
)
def test_signals_of_a_queue_and_of_a_launcher_save_first(
    sent: signal.Signals,
    times: int,
    launched: bool,
    code: int,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in LAUNCHED.items() if launched else ():
        monkeypatch.setenv(name, value)
    more = ("--mode", "train", "--spread", "folds") if launched else ()
    rare = ("--checkpoint.every_steps", "0", "--checkpoint.every_epochs", "1000")
    process = start("numpy", words(digits, tmp_path, *rare, *more))
    wait_for(lambda: bool(list((tmp_path / "run").rglob("history.csv"))), process)
    for _ in range(times):
        process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    started_by = "torchrun --nproc_per_node 2" if launched else "python"
    assert f"Go on with: {started_by} train_numpy.py " in out
    assert "Traceback" not in err
    (history,) = (tmp_path / "run").rglob("history.csv")
    last = checkpoint.newest(history.parent)
    assert last is not None
    rows = history.read_text().splitlines()
    assert checkpoint.read_state(last)["loop"]["epoch"] >= len(rows) - 1 > 0, "nothing that was trained is lost"
