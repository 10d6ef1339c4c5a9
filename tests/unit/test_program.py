"""What every command shares: spelling of flags, errors in one line, exit codes, signals, and quiet libraries."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import errors
from config.errors import DataError, TandemError
from config.program import entry
from config.program.parser import Parser
from tests.e2e.commands import start, words
from tests.unit.test_docs import anchors, generator
from tests.unit.test_house import ROOT
from training import cli
from training.campaign import pipeline

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TandemError)]


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind is not TandemError])
def test_every_error_is_explained_on_the_troubleshooting_page(kind: type[TandemError]) -> None:
    class Own(kind):
        """An error that a module defines for itself."""

    for one in (kind, Own):
        page, _, heading = entry.anchor(one).partition("#")
        assert heading == kind.__name__.lower() and heading in anchors(ROOT / page)


def test_every_exit_code_is_in_the_table() -> None:
    used = {kind.exit_code for kind in ERRORS} | {0, pipeline.LEFT_OUT, cli.REQUEUE}
    used |= {128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGPIPE}
    for path in (path for room in generator().ROOMS for path in (ROOT / room).rglob("*.py")):
        used |= {
            int(code) for code in re.findall(r"(?:exit_code =|_INTERRUPTED =|sys\.exit\()\s*(\d+)", path.read_text())
        }
    assert used == entry.EXIT_CODES.keys()
    assert "report-a-fault" in anchors(ROOT / entry.TROUBLESHOOTING)


@pytest.fixture
def every_parser(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[argparse.ArgumentParser]]:
    """The parser of each command and subcommand of the generated page."""
    seen: list[argparse.ArgumentParser] = []
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda parser, *_: seen.append(parser))
    for module, calls in generator().COMMANDS.values():
        for call in calls if module != "training.cli" else ():
            with pytest.raises(SystemExit):
                importlib.import_module(module).main([*call, "--help"])
    return seen


def test_each_flag_is_understood_with_dashes_and_with_underscores(every_parser: list[argparse.ArgumentParser]) -> None:
    flags = {flag for parser in every_parser for action in parser._actions for flag in action.option_strings}
    assert len(flags) > 60
    for flag in flags:
        body = flag.lstrip("-")
        prefix = flag[: len(flag) - len(body)]
        for written in (flag, prefix + body.replace("_", "-"), prefix + body.replace("-", "_")):
            assert entry.spelled(written) == flag


def test_dashes_work_for_settings_and_values_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main("torch", ["--data.root=a-b", "--train.batch-size", "7", "--name", "my-run", "--print-config"])
    out = capsys.readouterr().out
    assert "batch_size: 7" in out and "root: a-b" in out and "name: my-run" in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("infer --member a --imagse x --out o.csv", "--imagse: no such option; did you mean --images? see"),
        ("infer evalute --data.root x", "'evalute': no such command; did you mean evaluate?"),
        ("infer evaluate --ensembel e --data.root x", "--ensembel: no such option; did you mean --ensemble? see"),
        ("infer fit a --out e.yaml --method convx", "--method: found 'convx'; did you mean convex? there are convex,"),
        ("infer fit a --out e.yaml --soften nan", "--soften: found 'nan'; expected a number from 0 to 1; see"),
        ("infer oof a --tta none --batch_size 1.5", "--batch_size: found '1.5'; expected a whole number >= 1; see"),
        (
            "data enlarge --out b --min_per_class 1001",
            "--min_per_class: found '1001'; expected a whole",
        ),
        ("data loook", "command: found 'loook'; did you mean look? there are look,"),
        ("data", "no command given; there are look, audit,"),
        ("data --hepl", "--hepl: no such option; did you mean --help? see"),
        ("data --verbos audit", "--verbos: no such option; did you mean --verbose? see"),
        ("models push run a/b --privat", "--privat: no such option; did you mean --private? see"),
        ("models list a b", "unrecognized arguments: b; see"),
        ("training board --port x", "--port: found 'x'; expected a whole number; see"),
        ("convert a --to onnx --over", "--over: no such option; did you mean --overwrite? see"),
        ("convert a --to onnx --batch a", "--batch: found 'a'; expected a whole number; see"),
        ("convert --to onnx", "the following arguments are required: PATH; see"),
        ("doctor --jsno", "--jsno: no such option; did you mean --json? see"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_the_remedy(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    room, *rest = line.split(" ")
    try:
        code = importlib.import_module(f"{room}.__main__").main(rest)
    except SystemExit as stopped:
        code = stopped.code
    err = capsys.readouterr().err
    assert code == 2 and err.startswith(f"error: {message}") and err.count("\n") == 1
    assert re.search(rf"see python -m {room}[ \w]* --help\n$", err)


def test_every_command_has_the_shared_parser(every_parser: list[argparse.ArgumentParser]) -> None:
    assert all(isinstance(parser, Parser) for parser in every_parser)


@pytest.mark.parametrize("command", ["infer fit", "data audit", "models list", "training soup", "backends tune"])
def test_subcommands_print_the_version_too(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    room, *rest = command.split()
    assert importlib.import_module(f"{room}.__main__").main([*rest, "--version"]) == 0
    assert capsys.readouterr().out.startswith("tandem ")


def failing(_: list[str]) -> int:
    raise DataError("a.png: cannot be read")


def test_verbose_adds_the_traceback_and_where_the_error_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(failing, [], "x") == 1
    assert capsys.readouterr().err == "error: a.png: cannot be read\n"
    assert entry.run(failing, ["--verbose"], "x") == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "error: a.png: cannot be read" in err and "troubleshooting.md#dataerror" in err


def ran(work: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A process whose own command line does `work`."""
    code = (
        "import os, signal, sys, time, warnings, logging\nfrom config.program import entry\n"
        f"def work(words):\n    {work}\n    return 0\nsys.exit(entry.run(work, None, 'x'))"
    )
    environment = {**os.environ, **more}
    given = [sys.executable, "-c", code, *words]
    return subprocess.run(given, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize(
    "answer",
    [
        "time.sleep(9)",
        # What MLX does when Ctrl-C has ended the compiler that it had started.
        "\n    try: time.sleep(9)\n    except KeyboardInterrupt: raise RuntimeError('Failed to compile')",
        # What pydantic's core does in the middle of its import: pyo3's panic derives from BaseException.
        "\n    try: time.sleep(9)\n    except KeyboardInterrupt: raise BaseException('failed to import datetime')",
    ],
)
def test_a_signal_is_one_line_and_no_traceback(sent: str, code: int, answer: str) -> None:
    done = ran(
        f"os.kill(os.getpid(), signal.{sent}); {answer}"
        if "\n" not in answer
        else (
            "\n    def later(*_): os.kill(os.getpid(), signal." + sent + ")\n    signal.signal(signal.SIGALRM, later)"
            "\n    signal.setitimer(signal.ITIMER_REAL, 0.1)" + answer
        )
    )
    assert (done.returncode, done.stderr) == (code, "stopped\n")


def test_what_libraries_remark_does_not_reach_the_terminal_but_their_errors_do() -> None:
    noise = (
        "warnings.warn('python warning'); os.write(2, b'native warning'); logging.getLogger('lib').warning('logged');"
        "own = logging.getLogger('own'); own.propagate = False; own.addHandler(logging.StreamHandler());"
        "own.warning('own handler'); logging.getLogger('lib').error('it failed')"
    )
    done = ran(noise)
    assert done.returncode == 0 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and "it failed" in done.stderr
    shown = ran(noise, "--verbose").stderr
    assert all(text in shown for text in ("python warning", "native warning", "logged", "own handler"))


def test_tandems_own_warnings_are_lines() -> None:
    done = ran("from config.errors import TandemWarning; warnings.warn('2 images are left out', TandemWarning)")
    assert done.stderr == "warning: 2 images are left out\n"


def test_a_fault_in_tandem_keeps_its_traceback_and_says_how_to_report_it() -> None:
    done = ran("raise KeyError('x')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and done.stderr.splitlines()[-1].endswith("#report-a-fault says")


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    done = ran("os.close(1); os.dup2(os.pipe()[1], 1) if False else None; raise BrokenPipeError(32, 'Broken pipe')")
    assert done.returncode == 141 and not done.stderr


NOISY_TRAINING = """
import logging, os, warnings
from training.loop import trainer
def noisy(self, fit=trainer.Trainer.run):
    warnings.warn('python warning'); os.write(2, b'native warning\\n'); logging.getLogger('lib').warning('logged')
    return fit(self)
trainer.Trainer.run = noisy
"""


def test_a_runs_log_has_what_libraries_wrote(digits: Path, tmp_path: Path) -> None:
    process = start("numpy", words(digits, tmp_path, "--train.epochs", "1"), before=NOISY_TRAINING)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    log = (tmp_path / "run" / "run.log").read_text()
    assert all(text in log for text in ("python warning", "native warning", "logged"))


COMPILER_STOPPED = """
import os, signal
from training.loop import trainer
def stopped(self):
    os.kill(os.getpid(), signal.SIGINT)
    raise RuntimeError('[Compile::eval_cpu] Failed to compile function')
trainer.Trainer.run = stopped
"""


def test_ctrl_c_while_a_kernel_is_compiled_is_no_traceback(digits: Path, tmp_path: Path) -> None:
    process = start("numpy", words(digits, tmp_path), before=COMPILER_STOPPED)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in err
    assert "same command" in out


def test_no_command_writes_colours_of_its_own() -> None:
    """rich and argparse write them, which look at NO_COLOR."""
    for path in (path for room in generator().ROOMS for path in (ROOT / room).rglob("*.py")):
        assert not re.search(r"\\(x1b|033|u001b)\[", path.read_text()), path
