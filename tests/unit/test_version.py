"""`--version` of every command, and every file that states the version."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml

from config import load, usage
from tests.unit.test_house import HEAVY, MLX_SIDE, PROGRAMS, ROOT, TORCH_SIDE, run_without

STATED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
# NumPy is part of these packages' own types, and OpenCV of infer's views; neither is a framework.
NEEDED = {"infer": {"numpy", "cv2"}, "convert": {"numpy"}, "backends": {"numpy"}, "benchmarks": {"numpy"}}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_prints_its_version_without_a_framework(program: str) -> None:
    done = run_without(TORCH_SIDE | MLX_SIDE | HEAVY - NEEDED.get(program, set()), program, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tandem {STATED}\n", "")


def test_help_of_training_lists_version() -> None:
    assert "--version" in usage.help_text("train_torch.py")


def test_version_goes_before_the_faults_of_a_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load.parse(["--no.such", "1", "--version"], prog="train_torch.py")
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"tandem {STATED}\n"


def test_citation_and_changelog_state_the_version_of_pyproject() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert citation["version"] == newest[1] == STATED
