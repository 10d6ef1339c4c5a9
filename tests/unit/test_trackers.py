"""Trackers: what was told stands there once, under the run's name; and whatever they do, the training goes on."""

from __future__ import annotations

import csv
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from config import load
from config.errors import BackendUnavailable, Interrupted
from config.sections.train import Track
from tests.unit.test_campaign import NEVER, StopAfter, settings
from tests.unit.test_house import TORCH_SIDE, run_without
from training import trackers
from training.run import results, run_dir, train_run
from training.trackers import Title, broadcast, machine
from training.trackers.feed import Feed, figures

ON = ("--folds.train", "[0]", "--track.tensorboard", "true")


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a tag: all event files in order, each forgetting what the next one purges."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: list[tuple[int, float]] = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size
            if event.session_log.status == SessionLog.SessionStatus.START:
                found = [pair for pair in found if pair[0] < event.step]
            found += [(event.step, value.simple_value) for value in event.summary.value if value.tag == tag]
    return found


def test_tensorboard_shows_each_epoch_once_after_a_stop(digits: Path, tmp_path: Path) -> None:
    wanted = settings(digits, tmp_path, *ON, "--checkpoint.every_epochs", "3")
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", wanted, StopAfter(13))
    fold = train_run.run_all("numpy", wanted, NEVER) / "fold_0"
    with (fold / "history.csv").open(newline="") as stream:
        want = [(int(row["epoch"]), float(row["log_loss"])) for row in csv.DictReader(stream)]
    assert [epoch for epoch, _ in want] == [1, 2, 3]
    got = scalars(fold, "log_loss")
    assert [epoch for epoch, _ in got] == [1, 2, 3]
    np.testing.assert_allclose([v for _, v in got], [v for _, v in want], rtol=1e-6)
    assert len(scalars(fold, "system/memory_gib")) == 3
    assert [row["epoch"] for row in results.epochs(fold)] == [1, 2, 3]


def test_what_is_switched_on_later_is_told_from_the_beginning(digits: Path, tmp_path: Path) -> None:
    off = settings(digits, tmp_path, *ON[:2])
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", off, StopAfter(13))
    fold = train_run.run_all("numpy", settings(digits, tmp_path, *ON), NEVER) / "fold_0"
    assert [epoch for epoch, _ in scalars(fold, "accuracy")] == [1, 2, 3]


class Deaf:
    """A tracker that keeps what it is told, and fails at an epoch."""

    rewinds = False
    told: list[int]

    def __init__(self, fails_at: int = 0):
        self.state, self.told, self.shown, self.fails_at = {"id": "x"}, [], [], fails_at

    def epoch(self, number, values):
        if number == self.fails_at:
            raise ConnectionError("no route\nto host")
        self.told.append(number)

    def picture(self, name, image, epoch):
        self.shown.append((name, epoch))

    def close(self):
        self.told.append(-1)


def title(folder: Path) -> Title:
    return Title("run/fold_0", "run", "tandem", folder, folder, {"seed": 0})


def feed(folder: Path, tracker: Deaf, said: list[str]) -> Feed:
    return Feed("wandb", lambda _title, _state: tracker, title(folder), said.append)


def rows(*epochs: int) -> list[dict]:
    return [{"epoch": e, "log_loss": 1 / e, "system": {"cpu_percent": 5.0}} for e in epochs]


def test_a_failing_tracker_is_one_line_and_is_told_the_rest_next_time(tmp_path: Path) -> None:
    said: list[str] = []
    deaf = Deaf(fails_at=2)
    one = feed(tmp_path, deaf, said)
    for last in (1, 2, 3):
        results.write_epochs(tmp_path, rows(*range(1, last + 1)))
        one.epoch(last)
    one.close()
    assert said == ["track.wandb: failed and is off until the next start (no route to host); training goes on"]
    assert deaf.told == [1]
    whole = Deaf()
    other = feed(tmp_path, whole, said)
    results.write_epochs(tmp_path, rows(1, 2, 3, 4))
    other.epoch(4)
    other.close()
    assert whole.told == [3, 4, -1]
    assert len(said) == 1


def test_a_tracker_that_cannot_go_back_is_not_told_an_epoch_twice(tmp_path: Path) -> None:
    whole = Deaf()
    one = feed(tmp_path, whole, [])
    for last in (1, 2, 1, 2, 3):
        results.write_epochs(tmp_path, rows(*range(1, last + 1)))
        one.epoch(last)
        one.picture("confusion", lambda: np.zeros((2, 2, 3), np.uint8), last)
    one.close()
    assert whole.told == [1, 2, 3, -1]
    assert whole.shown == [("confusion", 1), ("confusion", 2), ("confusion", 3)]


def test_a_tracker_that_hangs_is_given_up(tmp_path: Path) -> None:
    said: list[str] = []
    ended = threading.Event()
    one = Feed("mlflow", lambda *_: ended.wait() or Deaf(), title(tmp_path), said.append)
    one.close(patience=0)
    ended.set()
    assert said == ["track.mlflow: has not answered for 0 s and is given up; training goes on"]


def test_a_service_that_is_not_there_costs_one_line(digits, tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("mlflow", reason='mlflow is not installed (pip install -e ".[mlflow]")')
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    wanted = settings(digits, tmp_path, "--folds.train", "[0]", "--track.mlflow", "true")
    folder = train_run.run_all("numpy", wanted, NEVER)
    assert (folder / "report.html").exists()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("track.")]
    assert len(said) == 1
    assert said[0].startswith("track.mlflow: failed")


def test_mlflow_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason='mlflow is not installed (pip install -e ".[mlflow]")')
    uri = (tmp_path / "store").as_uri()  # the store in files opens at once; that in SQLite takes seconds
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    said: list[str] = []
    for last in (2, 3):
        results.write_epochs(tmp_path, rows(*range(1, last + 1)))
        one = Feed("mlflow", trackers.opener("mlflow"), title(tmp_path), said.append)
        one.epoch(last)
        one.picture("samples", lambda: np.zeros((4, 4, 3), np.uint8), 0)
        one.close()
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tandem").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params["seed"]) == ("run/fold_0", "FINISHED", "0")
    assert [m.step for m in client.get_metric_history(run.info.run_id, "log_loss")] == [1, 2, 3]
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["samples_0.png"]
    assert not said


def test_wandb_is_offline_unless_logged_in_and_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason='wandb is not installed (pip install -e ".[wandb]")')
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    said: list[str] = []
    for last in (1, 2):
        results.write_epochs(tmp_path, rows(*range(1, last + 1)))
        one = Feed("wandb", trackers.opener("wandb"), title(tmp_path), said.append)
        one.epoch(last)
        one.close()
    parts = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    assert len({path.name.rpartition("-")[2] for path in parts}) == 1
    assert not said


def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.PACKAGES, "wandb", "no_such_package")
    with pytest.raises(BackendUnavailable, match=r'track\.wandb: .*pip install -e "\.\[wandb\]"'):
        trackers.require(Track(wandb=True))
    trackers.require(Track())


def test_tensorboard_needs_no_torch(tmp_path: Path) -> None:
    code = tmp_path / "write.py"
    code.write_text(
        f"from pathlib import Path\nfrom training.trackers import Title, opener\nhere = Path({str(tmp_path)!r})\n"
        "t = opener('tensorboard')(Title('a', 'a', 'p', here, here, {}), {})\n"
        "t.epoch(1, {'log_loss': 0.5})\nt.close()\n"
    )
    done = run_without(TORCH_SIDE, str(code))
    assert done.returncode == 0, done.stderr
    assert scalars(tmp_path, "log_loss") == [(1, 0.5)]


def test_a_fold_is_called_as_its_folder_lies_among_the_runs(digits: Path, tmp_path: Path) -> None:
    wanted = settings(digits, tmp_path, "--track.project", "cars")
    named = broadcast.title_of(wanted, tmp_path / "0001_x" / "fold_3")
    assert (named.name, named.group, named.project) == ("0001_x/fold_3", "0001_x", "cars")
    assert named.settings["optim.lr"] == 0.01


def test_a_submission_is_a_run_of_its_name(digits: Path, tmp_path: Path) -> None:
    wanted = settings(digits, tmp_path, "--track.tensorboard", "true")
    file = tmp_path / "20260101_big_ensemble_tta_1200.csv"
    file.write_text("ID,target\na,1\nb,2\n")
    expected = {"macro_f1": {"value": 0.9, "low": 0.8, "high": 1.0}}
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "ensemble_analysis.json").write_text(json.dumps({"expected": expected}))
    broadcast.publish(wanted, tmp_path / "c", file)
    place = tmp_path / "c" / "tracked" / file.stem
    assert scalars(place, "expected/macro_f1") == [(1, pytest.approx(0.9))]
    assert scalars(place, "images") == [(1, 2.0)]


def test_figures_leave_out_what_is_no_number() -> None:
    row = {"epoch": 1, "best": True, "time": "now", "log_loss": float("nan"), "lr": 1e-3, "system": {"gpu_watts": 9}}
    assert figures(row) == {"lr": 1e-3, "system/gpu_watts": 9.0}


def test_nvidia_smi_is_read_over_all_gpus() -> None:
    assert machine.parsed("50, 1024, 100.5\n70, 2048, [N/A]\n") == {"gpu_percent": 60.0, "gpu_memory_gib": 3.0}
    assert machine.parsed("") == {}


def test_a_container_without_disks_and_networks_reads_and_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.psutil, "disk_io_counters", lambda: None)
    monkeypatch.setattr(machine.psutil, "net_io_counters", lambda: None)
    used = machine.Machine(lambda: {"memory": {}, "device": "cpu"}, tmp_path).used()
    assert used["disk_read_gib"] == used["network_gib"] == 0.0


def test_tracking_is_no_reason_for_a_new_run(digits: Path, tmp_path: Path) -> None:
    one = settings(digits, tmp_path)
    other = load.parse(["--data.root", str(digits), "--track.wandb", "true"], prog="test")
    assert not [d for d in run_dir.differences(one, other) if d.startswith("track")]
