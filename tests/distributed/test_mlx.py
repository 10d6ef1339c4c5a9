"""The processes of mlx.launch, over a ring on this machine: one update, and whole runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import psutil
import pytest

import backends
from backends.group import ALONE, Group
from backends.mlx.distributed import group as group_module
from config.errors import GroupLost
from tests import tiny
from tests.distributed import cases, test_runs
from tests.distributed.cases import CASES, Trained
from tests.distributed.ranks import ports, together
from tests.distributed.test_runs import curve
from tests.distributed.test_torchrun import rank_of
from tests.e2e.commands import ROOT, wait_for
from training.distributed.group_run import STATUS
from training.run import results

SESSIONS = [name for name in CASES if not CASES[name].config.fsdp]
# BatchNorm takes the statistics of each process's own images, so that only the processes can be compared.
EXACT = [name for name in SESSIONS if name != "running statistics"]


def sent(group: Group) -> list[int]:
    """The float32 numbers of each message of one update in parts, without Mixup."""
    sizes: list[int] = []
    all_sum = mx.distributed.all_sum

    def counted(array: mx.array, **more: Any) -> mx.array:
        assert array.dtype == mx.float32
        sizes.append(array.size)
        return all_sum(array, **more)

    mx.distributed.all_sum = counted
    cases.train(group, CASES["gradient accumulation"]._replace(knobs=(cases.KNOBS,)), "mlx")
    mx.distributed.all_sum = all_sum
    return sizes


def bereft(group: Group, how: int, path: Path) -> None:
    """Rank 1 gets a signal between two updates; rank 0 writes what it is told then."""
    group_module._WAIT = 3.0
    pids = group.gather(np.array([os.getpid()]), even=True)
    session: Any = backends.load("mlx").open(tiny.spec("convnext", cases.CLASSES), None, cases.PLAIN, group)
    half = cases.batch(0)._replace(images=cases.batch(0).images[: cases.N // 2])
    session.read(session.train_step(half, None, cases.KNOBS))
    if group.rank:
        os.kill(os.getpid(), how)
    try:
        session.read(session.train_step(half, None, cases.KNOBS))
    except GroupLost as error:
        path.write_text(str(error))
    with suppress(ProcessLookupError):
        os.kill(pids[1], signal.SIGKILL)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_ends_or_is_silent_is_told_by_the_others(how: int, tmp_path: Path) -> None:
    with pytest.raises(EOFError):
        together(2, bereft, how, tmp_path / "error", seconds=60, engine="mlx")
    assert "another process of the group has ended or does not answer" in (tmp_path / "error").read_text()


def test_gradients_travel_once_in_one_message() -> None:
    first, second = together(2, sent, engine="mlx")
    parameters = sum(
        array.size for array in cases.train(ALONE, CASES["gradient accumulation"], "mlx").state.weights.values()
    )
    assert first == second == [parameters + cases.N + 1], "beside the gradients each image's loss and the mean one"


@pytest.fixture(scope="module")
def trained() -> list[dict[str, Trained]]:
    return together(2, cases.all_cases, "mlx", engine="mlx")


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_train_as_one(name: str, trained: list[dict[str, Trained]]) -> None:
    cases.assert_trained_alike(trained[0][name], cases.train(ALONE, CASES[name], "mlx"), CASES[name])


@pytest.mark.parametrize("name", SESSIONS)
def test_all_processes_hold_the_same_bits_and_report_the_same(name: str, trained: list[dict[str, Trained]]) -> None:
    first, second = (each[name] for each in trained)
    assert first.digest == second.digest
    np.testing.assert_array_equal(first.logits, second.logits)
    for one, other in zip(first.results, second.results, strict=True):
        np.testing.assert_array_equal(one.losses, other.losses)
        assert (one.grad_norm, one.finite) == (other.grad_norm, other.finite)


def words(root: Path, out: Path, *more: str) -> list[str]:
    """As `test_runs.words`, smaller and not compiled, which costs MLX more than the run does."""
    return test_runs.words(root, out, "--train.compile", "off", "--train.epochs", "2", "--swa.epochs", "1", *more)


@pytest.fixture(scope="module")
def alone(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.run(ALONE, words(digits, tmp_path_factory.mktemp("one")), engine="mlx")


def test_the_loss_curves_are_those_of_one_process(alone: Path, digits: Path, tmp_path: Path) -> None:
    folders = together(2, cases.run, words(digits, tmp_path), -1, "mlx", engine="mlx")
    assert len(set(folders)) == 1
    np.testing.assert_allclose(curve(folders[0]), curve(alone), rtol=1e-5)
    assert len(results.starts(folders[0])) == 1, "one process writes"


@pytest.mark.parametrize("engine", ["mlx", "torch"])
def test_a_stopped_run_goes_on_in_one_process(engine: str, alone: Path, digits: Path, tmp_path: Path) -> None:
    stopped = together(2, cases.stopped, words(digits, tmp_path), 5, "mlx", engine="mlx")
    assert stopped == [str(next(tmp_path.glob("*")))] * 2
    folder = cases.run(ALONE, words(digits, tmp_path, "--resume", stopped[0]), engine=engine)
    assert str(folder) == stopped[0]
    np.testing.assert_allclose(curve(folder), curve(alone), rtol=1e-5)


@contextmanager
def mlx_launch(count: int, *given: str) -> Iterator[subprocess.Popen[str]]:
    """`mlx.launch -n COUNT --backend ring -- python GIVEN`; whatever is left of it at the end is killed."""
    port = str(ports(count)[0])
    command = [str(Path(sys.executable).with_name("mlx.launch")), "-n", str(count), "--backend", "ring", "-p", port]
    process = subprocess.Popen(
        [*command, "--", sys.executable, *given],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    started = psutil.Process(process.pid)
    try:
        yield process
    finally:
        left = started.children(recursive=True) if started.is_running() else []
        for one in left:
            one.kill()
        process.kill()
        process.wait()


def test_the_folder_says_that_a_process_was_killed_and_the_next_start_goes_on(
    alone: Path, digits: Path, tmp_path: Path
) -> None:
    given = words(digits, tmp_path, "--checkpoint.every_steps", "1")
    with mlx_launch(2, "train_mlx.py", *given) as process:
        wait_for(lambda: bool([*tmp_path.glob("*/fold_0/step_0000000[2-9]")]), process)
        rank_of(process, 1, "MLX_RANK").kill()
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, "which is why there is a file"
    (folder,) = tmp_path.glob("*")
    status = json.loads((folder / STATUS).read_text())
    assert status["state"] == "failed"
    assert "another process of the group has ended or does not answer" in status["error"]
    with mlx_launch(2, "train_mlx.py", *given) as process:
        output, _ = process.communicate(timeout=120)
    assert "going on from" in output
    assert json.loads((folder / STATUS).read_text()) == {"state": "finished", "processes": 2, "error": ""}
    np.testing.assert_allclose(curve(folder), curve(alone), rtol=1e-5)
