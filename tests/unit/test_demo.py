"""`make demo`: commands run side by side, what they print goes to the log, and a failure stops it with its code."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from training import demo


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {"OUT": ".", "LOG": "log.txt", "SUBMISSION": "submission.csv", "DIGITS": "digits"}.items():
        monkeypatch.setattr(demo, name, tmp_path / value)
    return tmp_path


def test_commands_run_together_and_what_they_print_is_in_the_log(out: Path, capsys) -> None:
    demo.command(["-c", "print('one')"], ["-c", "import sys; print('two', file=sys.stderr)"])
    lines = (out / "log.txt").read_text().split("\n")
    assert [line for line in lines if line in ("one", "two")] == ["one", "two"]
    assert any(line.startswith("$ python -c") for line in lines)
    assert capsys.readouterr().out == ""


def test_a_command_that_fails_stops_the_demo_with_its_code_and_the_end_of_the_log(out: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        demo.command(["-c", "print('fine')"], ["-c", "import sys; print('what went wrong'); sys.exit(5)"])
    assert stopped.value.code == 5
    assert "what went wrong" in capsys.readouterr().err
    assert "fine" in (out / "log.txt").read_text()


@pytest.mark.parametrize(("wrong", "passed"), [(0, True), (20, False)])
def test_the_score_on_the_hidden_answers_decides(out: Path, all_digits: Path, monkeypatch, wrong, passed) -> None:
    monkeypatch.setattr(demo, "DIGITS", all_digits)
    answers = demo.column(all_digits / "hidden_answers.csv")
    rows = [(key, "0" if i < wrong and value != "0" else value) for i, (key, value) in enumerate(answers.items())]
    with (out / "submission.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("ID", "target"), *rows])
    reached, total, count = demo.score()
    assert (reached, count, total == 1) == (passed, 450, passed)
