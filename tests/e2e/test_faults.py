"""What can go wrong around a run, made to happen: signals, disks, numbers, threads, two processes at once."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from config import load
from config.errors import CheckpointError, DataError, Diverged, Interrupted
from data.cache.images import Images
from tests.e2e.commands import start, wait_for, words
from tests.numpy_engine import session as numpy_session
from tests.unit.test_campaign import NEVER, StopAfter, final, settings
from training.board.runs import Runs
from training.loop import checkpoint
from training.run import train_run

HANG_WHILE_SAVING = """
import time
from training.loop import checkpoint
whole = checkpoint.save
def save(*given):
    if list(given[0].glob("step_*")):
        print("saving", flush=True)
        time.sleep(600)
    return whole(*given)
checkpoint.save = save
"""


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run.run_all("numpy", settings(digits, tmp_path_factory.mktemp("runs")), NEVER)


def assert_same(one: Path, other: Path) -> None:
    first, second = final(one), final(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def state(root: Path) -> str:
    """What the board says of the run."""
    return Runs([root]).all()["run"].state


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_says_how_to_go_on_and_exits(sent: signal.Signals, code: int, digits: Path, tmp_path: Path):
    process = start("numpy", words(digits, tmp_path, "--checkpoint.every_steps", "0"))
    wait_for(lambda: (tmp_path / "run" / "fold_0" / "history.csv").exists(), process)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"python train_numpy.py --resume {tmp_path / 'run'}" in out
    assert "Traceback" not in err
    assert state(tmp_path) == "interrupted"
    last = checkpoint.newest(tmp_path / "run" / "fold_0")
    assert last is not None
    stood = checkpoint.read_state(last)
    with pytest.raises(Interrupted):  # the printed command goes on from there
        train_run.run_all("numpy", load.parse(["--resume", str(tmp_path / "run")], prog="test"), StopAfter(1))
    went_on = checkpoint.newest(tmp_path / "run" / "fold_0")
    assert went_on is not None
    assert checkpoint.read_state(went_on)["calls"] > stood["calls"]


def test_a_second_ctrl_c_leaves_at_once_with_the_last_checkpoint_whole(digits: Path, tmp_path: Path) -> None:
    process = start("numpy", words(digits, tmp_path), before=HANG_WHILE_SAVING)
    assert process.stdout is not None
    assert process.stderr is not None
    while "saving" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    while "press Ctrl-C again" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert checkpoint.newest(tmp_path / "run" / "fold_0") == tmp_path / "run" / "fold_0" / "step_00000000"
    assert state(tmp_path) == "interrupted"
    process.communicate()


def test_a_run_that_was_killed_has_failed(digits: Path, tmp_path: Path) -> None:
    process = start("numpy", words(digits, tmp_path))
    wait_for(lambda: (tmp_path / "run" / "fold_0" / "history.csv").exists(), process)
    assert state(tmp_path) == "training"
    process.kill()
    process.communicate()
    assert state(tmp_path) == "failed"
    (fold,) = Runs([tmp_path]).all()["run"].folds
    assert "its process was killed" in fold.reason


def test_a_second_process_on_one_run_is_refused(digits: Path, tmp_path: Path) -> None:
    """The second is told who works there; a lock outlives no process."""
    first = start("numpy", words(digits, tmp_path))
    wait_for(lambda: (tmp_path / "run" / "fold_0" / ".lock.owner").exists(), first)
    second = start("numpy", words(digits, tmp_path))
    _, err = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"process {first.pid} on {os.uname().nodename} is working in this folder" in err
    assert "Traceback" not in err
    first.kill()
    first.communicate()
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", load.parse(words(digits, tmp_path), prog="test"), StopAfter(0))


def test_folds_train_at_once_in_processes_of_their_own(digits: Path, tmp_path: Path) -> None:
    """Whoever finishes last sums up all; the result is that of one process."""
    common = [
        "--folds.strategy",
        "stratified",
        "--folds.n_splits",
        "2",
        "--train.epochs",
        "40",
        "--checkpoint.every_steps",
        "0",
    ]
    both = [start("numpy", words(digits, tmp_path, *common, "--folds.train", f"[{k}]")) for k in (0, 1)]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
    summary = yaml.safe_load((tmp_path / "run" / "fold_results.yaml").read_text())
    assert [row["fold"] for row in summary["folds"]] == [0, 1]
    alone = load.parse(words(digits, tmp_path / "alone", *common), prog="test")
    assert_same(train_run.run_all("numpy", alone, NEVER), tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)]
    if sys.platform != "linux" or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a file system of limited size can be mounted by root on Linux only")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_stops_the_run_and_spares_the_last_checkpoint(
    digits: Path, small_disk: Path, finished: Path
) -> None:
    wanted = settings(digits, small_disk)
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", wanted, StopAfter(7))
    fold = next(small_disk.glob("*/fold_0"))
    last = checkpoint.newest(fold)
    filler = small_disk / "filler"
    with filler.open("wb") as stream:
        stream.write(bytes(shutil.disk_usage(small_disk).free - 64 * 1024))
    with pytest.raises(CheckpointError, match=r"No space left on device.*\); it needs 1 MiB free"):
        train_run.run_all("numpy", wanted, NEVER)
    assert last is not None
    assert not checkpoint.damage(last)
    assert not list(fold.glob("*.partial"))
    filler.unlink()
    assert_same(finished, train_run.run_all("numpy", wanted, NEVER))


def without_rights() -> None:
    """Root may write everywhere: the child gives that up (Linux: CAP_DAC_OVERRIDE out of the bounding set)."""
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(24, 1, 0, 0, 0):
        os._exit(99)


@pytest.mark.parametrize("where", ["", "run/fold_0"])
def test_a_folder_that_became_read_only_is_one_line(where: str, digits: Path, tmp_path: Path) -> None:
    given = words(digits, tmp_path / "runs", "--checkpoint.every_steps", "0", "--train.epochs", "3")
    (tmp_path / "runs").mkdir()
    if where:
        with pytest.raises(Interrupted):
            train_run.run_all("numpy", load.parse(given, prog="test"), StopAfter(1))
    locked = tmp_path / "runs" / where
    locked.chmod(0o555)
    code = "import sys, tests.numpy_engine; from training.cli import main; sys.exit(main('numpy'))"
    ran = subprocess.run(
        [sys.executable, "-c", code, *given], capture_output=True, text=True, check=False, preexec_fn=without_rights
    )
    locked.chmod(0o755)
    if ran.returncode == 99:
        pytest.skip("runs as root and cannot give up root's right to write everywhere")
    assert ran.returncode == (1 if where else 2)
    assert ("Permission denied" if where else "is not writable") in ran.stderr
    assert "writ" in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr


def test_a_rate_that_makes_everything_infinite_ends_with_a_diagnosis(digits: Path, tmp_path: Path) -> None:
    wanted = settings(digits, tmp_path, "--optim.lr", "1e38", "--optim.clip_norm", "0", "--watchdog.max_skipped", "2")
    with pytest.raises(Diverged, match=r"updates in a row were not finite.*lower optim\.lr"):
        train_run.run_all("numpy", wanted, NEVER)
    fold = next(tmp_path.glob("*/fold_0"))
    assert checkpoint.newest(fold) is not None


def test_one_nan_is_skipped_and_counted(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = numpy_session.Session.train_step

    def broken(self: numpy_session.Session, batch, mix, knobs):
        if self._state.calls == 6:
            batch = batch._replace(targets=batch.targets * np.nan)
        return whole(self, batch, mix, knobs)

    monkeypatch.setattr(numpy_session.Session, "train_step", broken)
    folder = train_run.run_all("numpy", settings(digits, tmp_path, "--folds.train", "[0]"), NEVER)
    history = (folder / "fold_0" / "history.csv").read_text().splitlines()
    column = history[0].split(",").index("skipped")
    assert [row.split(",")[column] for row in history[1:]] == ["0", "1", "0"]


class Failing:
    """Images of which one thread fails once, at the n-th use."""

    def __init__(self, n: int, error: Exception, **options: int):
        self.left, self.error, self.images = n, error, Images(cache_bytes=0, **options)
        self.truncated = self.images.truncated

    def __call__(self, path: Path, *scale: Any) -> np.ndarray:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.images(path, *scale)


def test_a_loader_thread_that_dies_ends_the_run_and_it_goes_on(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    wanted = settings(digits, tmp_path)
    with monkeypatch.context() as patched:
        # The look at the 80 images comes first, then 40 to train on and 40 to judge by in each epoch.
        failing = Failing(80 + 80 + 20, MemoryError("no room"))
        patched.setattr(Images, "of", lambda *_: failing)
        with pytest.raises(MemoryError, match="no room") as caught:
            train_run.run_all("numpy", wanted, NEVER)
    assert "while preparing" in caught.value.__notes__[0], "it names the image"
    assert_same(finished, train_run.run_all("numpy", wanted, NEVER))


def test_an_image_that_vanishes_after_the_look_at_all_is_named_and_the_run_goes_on(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(digits, root)
    victim = sorted((root / "train").iterdir())[3]
    monkeypatch.setattr(Images, "of", functools.partial(Images.of, cache_bytes=0))
    seen = 0

    def take_away() -> bool:
        nonlocal seen
        seen += 1
        if seen == 7:
            victim.rename(tmp_path / "away")
        return False

    wanted = settings(root, tmp_path / "runs")
    with pytest.raises(DataError, match=victim.name):
        train_run.run_all("numpy", wanted, take_away)
    (tmp_path / "away").rename(victim)
    assert_same(finished, train_run.run_all("numpy", wanted, NEVER))
