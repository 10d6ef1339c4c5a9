"""Completion of the commands' options in a real bash."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from config import usage
from doctor import completion
from doctor.__main__ import main
from tests.unit.test_docs import generator

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shell") / "completion.bash"
    path.write_text(completion.script("bash"))
    return path


@pytest.mark.skipif(not BASH, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("python train_torch.py --optim.l", {"--optim.lr", "--optim.layer_decay"}),
        ("python3 ./train_mlx.py --optim.name l", {"lion"}),
        ("python -m in", {"infer"}),
        ("python -m infer f", {"fit"}),
        ("python -m infer fit runs/a --calib", {"--calibration"}),
        ("python -m infer --on_b", {"--on_bad_image"}),
        ("python -m convert RUN --to c", {"coreml"}),
        ("python -W ignore -m training leaderboard --metric a", {"accuracy"}),
        ("python script.py --", set()),
    ],
)
def test_tab_completes_options_commands_and_values(line: str, some: set[str], script: Path) -> None:
    words = line.split()
    typed = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
    code = f"source {script}; {typed}; _tandem; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run([str(BASH), "-c", code], capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert some <= found and bool(found) == bool(some) and all(word.startswith(words[-1]) for word in found)


def test_every_command_and_setting_is_completed() -> None:
    known = completion.options()
    assert {f"--{path}" for path in usage.leaves()} <= set(known["train", ""])
    for title, (module, calls) in generator().COMMANDS.items():
        for call in calls if module != "training.cli" else ():
            assert known[title.removeprefix("python -m "), " ".join(call)]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_get_the_same_words(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print_completion", shell]) == 0
    printed = capsys.readouterr().out
    assert "--optim.lr" in printed and "leaderboard" in printed
    if program := shutil.which(shell):
        subprocess.run([program, "-n", "-c", printed], check=True)
