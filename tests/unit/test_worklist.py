"""Items shared by processes and machines: taken once, taken over from the dead, never from the living."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import fresh
from training.campaign import queue
from training.campaign.queue import PATIENCE, Worklist, alone

FRESH = fresh("training.campaign.queue")


def finished(folder: Path) -> bool:
    return (folder / "result").exists()


def items(root: Path, count: int) -> list[Path]:
    return [root / f"item_{i:02d}" for i in range(count)]


def work(root: Path, count: int) -> None:
    """A worker that notes in each item that it did it."""
    for claim in Worklist(items(root, count), finished).each(lambda: False):
        with claim, (claim.folder / "log").open("a") as log:
            log.write(f"{os.getpid()}\n")
            (claim.folder / "result").touch()


def hold(root: Path, ready: str) -> None:
    claim = Worklist(items(root, 1), finished).take()
    assert claim is not None
    claim.__enter__()
    Path(ready).touch()
    signal.pause()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def of_another_host(folder: Path, number: int = 1, beat: int = 0, held: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    owner = {"host": "mac 1", "name": "process 7 on mac", "held": held, "beat": beat}
    (folder / f".claim_{number:04d}").write_text(json.dumps(owner))


def test_four_processes_do_thirty_items_each_once(tmp_path: Path) -> None:
    workers = [FRESH.Process(target=work, args=(tmp_path, 30)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    logs = [(item / "log").read_text().split() for item in items(tmp_path, 30)]
    assert all(len(log) == 1 for log in logs)


def test_the_item_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    worker = FRESH.Process(target=hold, args=(tmp_path, str(ready)))
    worker.start()
    while not ready.exists():
        assert worker.is_alive()
    here = Worklist(items(tmp_path, 1), finished)
    assert here.take() is None
    assert f"process {worker.pid} on " in next(iter(here.owners().values()))
    os.kill(worker.pid or 0, signal.SIGKILL)
    worker.join()
    claim = here.take()
    assert claim is not None
    with claim:
        assert not claim.lost


def test_another_hosts_item_is_taken_when_its_beat_stands_still_and_not_before(tmp_path: Path) -> None:
    (item,) = items(tmp_path, 1)
    of_another_host(item)
    clock = Clock()
    here = Worklist([item], finished, clock)
    assert here.take() is None
    clock.now += PATIENCE - 1
    assert here.take() is None
    of_another_host(item, beat=1)  # it lives
    clock.now += 2
    assert here.take() is None
    clock.now += PATIENCE
    assert here.take() is not None


def test_an_owner_that_was_only_slow_sees_that_it_lost(tmp_path: Path) -> None:
    claim = Worklist(items(tmp_path, 1), finished).take()
    assert claim is not None
    with claim:
        claim.beat()
        assert not claim.lost
        of_another_host(claim.folder, number=2)
        claim.beat()
        assert claim.lost
        before = (claim.folder / ".claim_0002").read_text()
    assert (claim.folder / ".claim_0002").read_text() == before


def test_an_item_that_another_host_gave_back_is_free(tmp_path: Path) -> None:
    (item,) = items(tmp_path, 1)
    of_another_host(item, held=False)
    assert Worklist([item], finished).take() is not None


def test_of_two_that_take_over_the_same_item_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts that share no locks: both find the claim dead, and the second to make the next one fails."""
    (item,) = items(tmp_path, 1)
    of_another_host(item)
    clock = Clock()
    here = Worklist([item], finished, clock)
    assert here.take() is None
    clock.now += PATIENCE
    create: Callable[[Path, int], bool] = queue._create

    def other_is_first(folder: Path, number: int) -> bool:
        of_another_host(folder, number)
        return create(folder, number)

    monkeypatch.setattr(queue, "_create", other_is_first)
    assert here.take() is None


def test_waiting_ends_with_the_work_or_with_a_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (item,) = items(tmp_path, 1)
    of_another_host(item)

    def others_finish(_seconds: float) -> None:
        (item / "result").touch()

    assert list(Worklist([item], finished, pause=others_finish).each(lambda: False)) == []
    assert f"waiting for {item}: process 7 on mac works on it" in capsys.readouterr().out
    with alone(tmp_path / "stages", lambda: True) as claim:
        assert claim is None


def test_a_process_that_takes_nothing_waits_for_those_that_work(tmp_path: Path) -> None:
    """First nobody works, then another host does, which ends one item and dies in the other."""
    first, second = items(tmp_path, 2)
    clock = Clock()

    def pause(_seconds: float) -> None:
        clock.now += 60
        if clock.now == 1120:
            of_another_host(first)
        elif 1120 < clock.now < 2000:
            of_another_host(first, beat=int(clock.now))
        elif clock.now == 2020:
            (first / "result").touch()
            of_another_host(second)

    here = Worklist([first, second], finished, clock, pause)
    assert not here.outlasted(lambda: False)
    assert clock.now >= 2020 + PATIENCE
    assert here.take() is not None, "it was only watched"
    (second / "result").touch()
    assert here.outlasted(lambda: False)
