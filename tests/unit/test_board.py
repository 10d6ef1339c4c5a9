"""The board without a browser: states of runs, what it reads and refuses, and the server under it."""

from __future__ import annotations

import html
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest

import infer
from config.errors import CheckpointError
from infer import web
from tests.unit import runs
from training.__main__ import main
from training.board import app
from training.board.runs import Runs
from training.run import run_dir

HOSTILE = "ünïcode <b>run & \"x\" 'y' 100%?#"
Ask = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run to copy."""
    return runs.finished(tmp_path_factory.mktemp("made"), ("ant", "bee"), 12)


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "runs" / "good")
    return tmp_path / "runs"


@pytest.fixture
def ask(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    """Asks a board about `root`: (path, method, body, headers) to status and text."""
    monkeypatch.setattr("training.board.runs._FRESH", 0.0)
    server = web.Server(app.app([root]), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()

    def asked(path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        connection.request(method, path, body, {"Host": f"localhost:{server.server_port}", **headers})
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        connection.close()
        asked.headers = response.headers  # type: ignore[attr-defined]
        return response.status, text

    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def state(root: Path, key: str) -> str:
    run = Runs([root]).all()[key]
    return run.fault or run.state


def unfinished(root: Path, name: str) -> Path:
    """A run whose second fold has two epochs and no result."""
    run = root / name
    shutil.copytree(root / "good", run)
    (run / "fold_results.yaml").unlink()
    (run / "fold_1" / "result.yaml").unlink()
    rows = [{"epoch": k, "macro_f1": 0.3 * k, "accuracy": 0.5, "log_loss": 0.6, "best": True} for k in (1, 2)]
    (run / "fold_1" / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_run_is_finished_interrupted_or_training_by_its_files_and_who_holds_its_folds(root: Path) -> None:
    fold = unfinished(root, "cut") / "fold_1"
    assert (state(root, "good"), state(root, "cut")) == ("finished", "interrupted")
    with run_dir.locked(fold):
        assert state(root, "cut") == "training"
    assert state(root, "cut") == "interrupted"
    (fold / ".lock.owner").write_text(run_dir.owner().replace(str(os.getpid()), str(ended_process())))
    assert state(root, "cut") == "interrupted"
    (fold / ".lock.owner").write_text("process 1 on another-host")
    assert state(root, "cut") == "training"
    for file in fold.iterdir():
        os.utime(file, (0, 0))
    assert state(root, "cut") == "interrupted"
    (fold / ".lock.owner").unlink()
    (fold / "failed.yaml").write_text("{member: cut, fold: 1, reason: it diverged}")
    assert state(root, "cut") == "failed"


def test_looking_at_a_run_never_keeps_its_training_from_a_lock(root: Path) -> None:
    fold, board = unfinished(root, "cut") / "fold_1", Runs([root])
    board.all()
    with run_dir.locked(fold):
        board.all()
        assert sorted(path.name for path in fold.glob(".lock*")) == [".lock", ".lock.owner"]


def test_a_number_of_a_process_that_another_program_has_now_is_not_taken_for_training(root: Path) -> None:
    fold = unfinished(root, "cut") / "fold_1"
    (fold / ".lock.owner").write_text(run_dir.owner())
    os.utime(fold / ".lock.owner", (1, 1))  # written before this process began
    assert state(root, "cut") == "interrupted"


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("config.yaml", "a: [1", "config.yaml cannot be read: "),
        ("config.yaml", "just text", "config.yaml cannot be read: "),
        ("config.yaml", None, "config.yaml is missing"),
        ("environment.json", '[{"engine": "to', "environment.json cannot be read: "),
        ("fold_1/result.yaml", "{fold: 1", "result.yaml cannot be read: "),
        ("fold_1/result.yaml", "{fold: 1, macro_f1: high}", "result.yaml cannot be read: "),
    ],
)
def test_a_damaged_run_is_one_line_on_the_page_and_the_others_stay(root, ask, file, text, fault) -> None:
    bad = root / "bad"
    shutil.copytree(root / "good", bad)
    (bad / file).unlink() if text is None else (bad / file).write_text(text)
    status, page = ask("/")
    assert status == 200 and "run?run=good" in page
    assert f'<b>bad</b> <span class="soft">{fault}' in page
    status, page = ask("/run?run=bad")
    assert status == 404 and fault in page


def test_damaged_curves_are_one_line_on_the_page_of_a_run(root: Path, ask: Ask) -> None:
    fold = unfinished(root, "cut") / "fold_1"
    (fold / "history.jsonl").write_text("")
    (fold / "history.csv").write_text("epoch,macro_f1\n1,0.5\ntwo,0.6\n")
    status, page = ask("/run?run=cut")
    assert status == 200 and "The curves cannot be read: ValueError" in page
    assert "cannot be read" in json.loads(ask("/live?run=cut")[1])["status"]


def test_any_name_of_a_run_is_text_and_leads_to_its_page(root: Path, ask: Ask) -> None:
    shutil.copytree(root / "good", root / "deep" / HOSTILE)
    key = f"deep/{HOSTILE}"
    page = ask("/")[1]
    links = [parse_qs(urlsplit(html.unescape(link)).query)["run"] for link in re.findall(r'href="(run\?[^"]*)"', page)]
    assert sorted(links) == [[key], ["good"]] and "<b>run" not in page
    status, page = ask(f"/run?{urlencode({'run': key})}")
    assert status == 200 and "<b>run" not in page and "&lt;b&gt;run" in page


def test_runs_of_several_folders_and_of_a_single_run_are_told_apart(root: Path, made: Path, tmp_path: Path) -> None:
    for name in ("other", "more/runs"):
        shutil.copytree(made.parent, tmp_path / name)
    assert set(Runs([root, tmp_path / "other"]).all()) == {"runs/good", "other/made"}
    assert len(Runs([root, tmp_path / "more" / "runs"]).all()) == 2
    assert set(Runs([root / "good"]).all()) == {"good"}


def test_the_report_is_shown_without_any_right_to_ask_the_board(root: Path, ask: Ask) -> None:
    (root / "good" / "report.html").write_text("<p>report")
    assert ask("/file?run=good&file=report.html") == (200, "<p>report")
    policy = ask.headers["Content-Security-Policy"]  # type: ignore[attr-defined]
    assert policy.startswith("sandbox allow-scripts allow-downloads; default-src 'none'")
    assert "allow-same-origin" not in policy


@pytest.mark.parametrize(
    "name",
    ["../secret.html", "config.yaml", "fold_0/result.yaml", "/etc/passwd", "plots/../../secret.html", "", "audit.html",
     "plots/confusion.png", "..%2fsecret.html"],
)  # fmt: skip
def test_no_file_outside_the_listed_ones_is_given(root: Path, ask: Ask, name: str) -> None:
    for place in (root / "secret.html", root.parent / "secret.html"):
        place.write_text("secret")
    (root / "good" / "audit.html").symlink_to(root.parent / "secret.html")
    (root / "good" / "plots").mkdir(exist_ok=True)
    (root / "good" / "plots" / "confusion.png").symlink_to(root.parent / "secret.html")
    status, text = ask(f"/file?{urlencode({'run': 'good', 'file': name})}")
    assert status == 404 and "secret</p>" not in text and text != "secret"
    assert ask(f"/file?run={quote('../good')}&file=report.html")[0] == 404
    assert ask("/../secret.html")[0] == 404


def test_folders_behind_links_are_not_entered(root: Path, made: Path) -> None:
    (root / "link").symlink_to(made)
    (root / "round").symlink_to(root)
    assert set(Runs([root]).all()) == {"good"}


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "evil@localhost:1@x", "[::1", ""]
)
def test_a_host_header_that_is_not_this_machine_is_refused(ask: Ask, host: str) -> None:
    status, text = ask("/", Host=host)
    assert status == 400 and "run?run=" not in text


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "[::1]:7870", "LOCALHOST:1"])
def test_a_tunnel_to_this_machine_is_served(ask: Ask, host: str) -> None:
    assert ask("/", Host=host)[0] == 200


def test_only_the_prediction_takes_a_post_and_only_from_its_own_page(ask: Ask) -> None:
    assert ask("/", "POST", b"x") == (405, '{"error": "the board is read-only"}')
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert ask("/", method)[0] == 501
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert ask("/predict?run=good", "POST", b"x", **headers)[0] == 403
    assert ask("/predict?run=good", "POST", b"no image")[0] == 422
    assert ask("/predict?run=good", "POST", bytes(21 * 2**20))[0] == 413
    assert ask("/predict?run=none", "POST", b"x")[0] == 404


def test_the_prediction_is_that_of_the_runs_folds(root: Path, ask: Ask, made: Path) -> None:
    image = next((made.parents[1] / "data" / "train").iterdir())
    status, text = ask("/predict?run=good", "POST", image.read_bytes())
    prediction = json.loads(text)
    alone = [infer.load(root / "good" / f"fold_{k}" / "best").predict([image]).probabilities[0] for k in (0, 1)]
    assert status == 200 and len(prediction["members"]) == 2
    assert list(prediction["probabilities"].values()) == pytest.approx((alone[0] + alone[1]) / 2, abs=1e-6)
    pictures = json.loads(ask("/predict?run=good&pictures", "POST", image.read_bytes())[1])
    assert pictures["views"]["original"].startswith("data:image/jpeg;base64,")
    unfinished(root, "cut")
    shutil.rmtree(root / "cut" / "fold_0" / "best")
    status, text = ask("/predict?run=cut")
    assert status == 404 and "no finished fold" in text


def test_head_has_no_body_and_an_unchanged_page_is_not_sent_again(ask: Ask) -> None:
    assert ask("/", "HEAD") == (200, "")
    assert int(ask.headers["Content-Length"]) > 1000  # type: ignore[attr-defined]
    ask("/rows")
    tag = ask.headers["ETag"]  # type: ignore[attr-defined]
    assert ask("/rows", **{"If-None-Match": tag}) == (304, "")


def test_what_trains_is_told_step_by_step(root: Path, ask: Ask) -> None:
    fold = unfinished(root, "cut") / "fold_1"
    row = {"owner": run_dir.owner(), "epoch": 3, "update": 25, "updates": 100, "loss": 0.25}
    (fold / "progress.json").write_text(json.dumps(row | {"images_per_second": 99.0, "seconds_left": 75.0}))
    said = json.loads(ask("/live?run=cut")[1])
    assert said["state"] == "training"
    assert "update 25 of 100, loss 0.2500, 99 images/s, at most 1 min 15 left" in said["status"]
    assert "62%, 1 of 2 folds done" in said["status"]  # one fold, and a quarter of the other


def test_a_thousand_runs_are_read_once(root: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.run import results

    for number in range(30):
        shutil.copytree(root / "good", root / f"copy_{number}")
    board, read = Runs([root]), []
    monkeypatch.setattr("training.board.runs._FRESH", 0.0)
    parse = results.read_yaml
    counting = lambda path: read.append(path) or parse(path)  # noqa: E731
    counting.__name__ = parse.__name__
    monkeypatch.setattr(results, "read_yaml", counting)
    assert len(board.all()) == 31
    first = len(read)
    board.all()
    assert first >= 31 * 3 and len(read) == first
    (root / "copy_3" / "config.yaml").touch()
    board.all()
    assert read[first:] == [root / "copy_3" / "config.yaml"]


def test_a_folder_that_is_not_there_and_a_port_in_use_are_one_line(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        Runs([root / "none"])
    server = web.Server(app.app([root]), "127.0.0.1", 0)
    assert main(["board", str(root), "--port", str(server.server_port)]) == 2
    server.server_close()
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"port {server.server_port}" in error and "--port" in error
    assert main(["board", str(root), "--port", "70000"]) == 2
    assert "--port" in capsys.readouterr().err
