"""`make verify-mac` and `make verify-gpu`: a dry run goes through anywhere, a page is written whatever fails."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from doctor import verify
from doctor.verify import Step
from tests.unit.test_house import ROOT


@pytest.mark.parametrize("machine", ["mac", "gpu"])
def test_every_step_can_be_started(machine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    assert verify.main([machine, "--dry_run", "--out", str(page)]) == 0, capsys.readouterr().out
    text = page.read_text()
    assert "failed" not in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## {step.title}" for step in verify.steps(machine, tmp_path)
    ]
    targets = [step.words[-1] for step in verify.steps(machine, tmp_path) if step.words[0] == "make"]
    assert targets and all(
        re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in targets
    )


def test_a_step_that_fails_or_hangs_leaves_the_others_and_their_page(tmp_path: Path, monkeypatch, capsys) -> None:
    steps = [
        Step("one", ("-c", "print('2 failed, 3 passed in 1 s'); raise SystemExit(1)"), ()),
        Step("two", ("-c", "import time; print('begun', flush=True); time.sleep(60)"), (), minutes=0.02),
        Step("three", ("-c", "print('9 passed in 1.50s'); print('torch fp32 error 2e-6')"), ()),
    ]
    monkeypatch.setattr(verify, "steps", lambda machine, folder: steps)
    page = tmp_path / "page.md"
    assert verify.main(["mac", "--out", str(page)]) == 1
    text = page.read_text()
    assert "| one | **failed**, exit code 1: 2 failed, 3 passed in 1 s |" in text
    assert "| two | stopped at its time limit |" in text and "begun" in text
    assert "| three | passed: 9 passed in 1.50s |" in text
