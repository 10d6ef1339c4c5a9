"""Where an epoch's time went: the shares, what is advised, and that results are read only once they are old."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from config import load
from config.schema import Settings
from tests.numpy_engine import session
from tests.unit.test_campaign import NEVER
from tests.unit.test_campaign import settings as small
from training.loop import bottleneck
from training.loop.state import Timings
from training.loop.trainer import _IN_FLIGHT
from training.run import train_run


def settings(*more: str) -> Settings:
    return load.parse(["--data.root", "x", *more], prog="test")


def test_the_shares_are_of_the_whole_and_a_busy_device_does_not_wait() -> None:
    row = Timings(waited=2.0, computed=7.0, saved=1.0, images=50).row()
    assert (row["waiting"], row["computing"], row["saving"]) == (0.2, 0.7, 0.1)
    assert bottleneck.shares(row) == "waiting 20%  computing 70%  saving 10%"
    # The host had no batch for 8 of 10 seconds, and the device worked through 9 of them.
    busy = Timings(waited=8.0, computed=2.0, device=9.0).row()
    assert (busy["waiting"], busy["computing"]) == (0.1, 0.9)
    idle = Timings(waited=8.0, computed=2.0, device=1.0).row()
    assert idle["waiting"] == 0.8


def test_advice_names_what_can_be_changed_and_only_where_it_bounds() -> None:
    row = Timings(waited=2.0, computed=8.0).row()
    said = bottleneck.advice(row, settings("--data.workers", "2", "--augment.level", "hard"), cores=8)
    assert "waits for data 20%" in said
    assert "--data.workers (2 of 8 cores)" in said
    assert "--augment.level" in said
    assert "--data.cache_gb" in said
    assert "cache_gb" not in bottleneck.advice(row, settings("--data.cache_gb", "5"), cores=8)  # it is there already
    assert "workers" not in bottleneck.advice(row, settings(), cores=8)  # 0 is all cores already
    stream = ["--data.streaming", "true"]
    assert "shard_cache_gb" not in bottleneck.advice(row, settings(*stream), cores=8)  # shards on this machine
    at_url = settings(*stream, "--data.root", "https://host/shards")
    assert "shard_cache_gb" in bottleneck.advice(row, at_url, cores=8)
    assert "--data.processes auto" in bottleneck.advice(row, settings("--data.processes", "0"), cores=16)
    assert "processes" not in bottleneck.advice(row, settings("--data.processes", "0"), cores=8)
    assert not bottleneck.advice(Timings(waited=1.0, computed=9.0).row(), settings(), 8)
    assert "--checkpoint" in bottleneck.advice(Timings(computed=8.0, saved=2.0).row(), settings(), 8)


def test_the_loop_reads_only_results_that_are_old_or_the_last(digits: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Within an epoch the loop never waits for an update before the next four are enqueued."""
    told: list[str] = []
    step, read, state = session.Session.train_step, session.Session.read, session.Session.state

    def noted(name: str, original: Any) -> Any:
        def call(this: session.Session, *arguments: Any) -> Any:
            told.append(name)
            return original(this, *arguments)

        return call

    for name, original in (("train_step", step), ("read", read), ("state", state)):
        monkeypatch.setattr(session.Session, name, noted(name, original))
    wanted = small(digits, tmp_path, "--folds.train", "[0]", "--train.batch_size", "2", "--train.epochs", "1")
    train_run.run_all("numpy", wanted, NEVER)
    first, last = told.index("train_step"), len(told) - 1 - told[::-1].index("train_step")
    inside = told[first : last + 1]
    assert inside.count("train_step") >= 3 * _IN_FLIGHT
    assert "state" not in inside
    for i, name in enumerate(inside):
        if name == "read":
            assert inside[:i].count("train_step") - inside[:i].count("read") > _IN_FLIGHT


@pytest.mark.parametrize("line", ["waiting", "computing", "saving"])
def test_the_epoch_line_and_the_history_show_each_share(line: str, digits: Path, tmp_path: Path, capsys: Any) -> None:
    folder = train_run.run_all("numpy", small(digits, tmp_path, "--folds.train", "[0]", "--train.epochs", "1"), NEVER)
    assert f"{line} " in capsys.readouterr().out
    assert line in (folder / "fold_0" / "history.csv").read_text().splitlines()[0].split(",")
