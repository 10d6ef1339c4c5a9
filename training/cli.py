"""The command line of both entry points and of workers; an error that a user can fix is one line."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from config import streams
from config.errors import CheckpointError, ConfigError, Interrupted, TandemError
from config.program import entry
from training.distributed.group_run import GroupRun

if TYPE_CHECKING:
    from config import load
    from config.command import RunRequest
    from config.launch import Launch
    from config.schema import Settings

_FIRST = 10.0  # seconds that the first process of a host may need more than another one to find an error
REQUEUE = 75  # the exit code after SIGUSR1, EX_TEMPFAIL of sysexits.h: start the same command again


class StopSignal:
    """Turns the first SIGINT, SIGTERM or SIGUSR1 into a request to stop; a second one ends the process at once, unless
    a launcher may have sent both: torchrun repeats to its processes what the terminal sent to all."""

    def __init__(self, launch: Launch, leave_at_once: Callable[[int], None]) -> None:
        self.received = 0
        self._launch, self._leave_at_once = launch, leave_at_once
        for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
            if hasattr(signal, name):  # Windows has no SIGUSR1
                signal.signal(getattr(signal, name), self._note)

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.received != 0

    @property
    def exit_code(self) -> int:
        """The exit code for the signal that stopped the process."""
        # In a group another process may have received it.
        return REQUEUE if self.received == getattr(signal, "SIGUSR1", None) else 128 + (self.received or signal.SIGTERM)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            if not self._launch.several:
                self._leave_at_once(128 + number)
            return
        self.received = number
        if self._launch.rank:  # the first one says it
            return
        # print() is not safe here: the signal may have come in the middle of another one.
        more = b"" if self._launch.several else b"; press Ctrl-C again to leave at once"
        os.write(streams.terminal(), b"\nstopping after this step" + more + b"\n")


def main(engine: str, argv: Sequence[str] | None = None) -> int:
    """Run `train_ENGINE.py`; returns the exit code: 0, 1 data and the like, 2 settings, 3 a campaign that had to leave
    folds out, 75, 130 and 143 interrupted."""
    prog = f"train_{engine}.py"

    def work(words: list[str]) -> int:
        from config import load

        return run(
            engine,
            lambda: load.parse_command(words, prog=prog),
            lambda request, folder: f"{_again(prog, request)} --resume {folder}",
        )

    code = entry.run(work, argv, prog)
    if code and argv is None and GroupRun.joins:  # gloo aborts a process at its end whose group others have left
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def work_on(folder: Path, engine: str, words: Sequence[str]) -> int:
    """Train, or search, what is left in a campaign's folder; the exit code as `main`.

    The folder's `request.yaml`, which the campaign's own commands write, says which of the two. `engine` "" is the one
    that is installed. `words` are options of `train_ENGINE.py`, such as `--data.root` where the images lie elsewhere on
    this machine.
    """
    import backends
    from training.campaign.pipeline import LEFT_OUT

    again = " ".join(
        ["python -m training worker --campaign", str(folder), *[f"--engine {engine}"] * bool(engine), *words]
    )
    code = run(engine or backends.default(), lambda: _work_left(folder, words), lambda *_: again)
    if code in (0, LEFT_OUT):
        print(f"{folder}: all that was asked for is done")
    return code


def _work_left(folder: Path, words: Sequence[str]) -> load.Command:
    from config import load
    from training.campaign import members

    if not (folder / load.CAMPAIGN).exists():
        raise CheckpointError(
            f"{folder}: no {load.CAMPAIGN}, so this is no campaign; give the folder that train_torch.py or "
            "train_mlx.py has made with --mode audit, tune, train or full"
        )
    request = members.requested(folder)
    asked = ["--mode", request.mode, *["--member", request.member] * bool(request.member), "--spread", "folds"]
    command = load.parse_command(["--resume", str(folder), *asked, *words], prog="python -m training worker")
    return replace(command, request=replace(command.request, tune=request.tune))


def run(engine: str, parse: Callable[[], load.Command], again: Callable[[RunRequest, Path], str]) -> int:
    """Run a command line; the exit code as `main`. `again` returns the command that resumes a folder.

    `TandemError`s are the caller's.
    """
    from config.launch import Launch

    launch, alone = Launch.of(os.environ), False
    try:
        command = parse()
        alone = command.request.spread and launch.several
        return _run(engine, replace(command, request=replace(command.request, spread=alone)), again, launch)
    except TandemError:
        if launch.local_rank and not alone:
            # The first process of this host prints an error that all of them find; then the launcher ends this one.
            for name in (signal.SIGINT, signal.SIGTERM):
                signal.signal(name, signal.SIG_DFL)
            time.sleep(_FIRST)
        raise


def _run(engine: str, command: load.Command, again: Callable[[RunRequest, Path], str], launch: Launch) -> int:
    request = command.request
    _check_launch(launch, command)
    if request.spread:
        streams.number(launch.rank)
    settings = None if request.mode else command.settings
    import backends  # after --help, which must not wait for these imports
    from training.run import outcome, train_run

    backends.require(engine)
    if request.dry_run:
        from training.campaign import plan

        print(*plan.lines(engine, command), sep="\n")
        return 0
    stop = StopSignal(launch, outcome.leave_at_once)
    try:
        if settings is None:
            from training.campaign import pipeline, start

            campaign = start.begin(engine, command.members, stop, request.mode in pipeline.START_MODES)
            streams.log_to(campaign.folder)
            print(f"campaign: {campaign.folder}")
            return pipeline.work(campaign, request)
        if launch.several:
            _in_group(engine, settings, launch, stop)
        else:
            print(f"finished: {train_run.run_all(engine, settings, stop) / 'report.html'}")
    except Interrupted as interrupted:
        folder = interrupted.folder
        print(f"{outcome.stopped(folder)}. Go on with: {again(request, folder)}")
        return stop.exit_code
    except Exception as error:
        if isinstance(error, TandemError) or not stop.received:
            raise
        # A library or a compiler that it started was interrupted, too: Ctrl-C reaches all processes.
        print("stopped; what was saved is kept. Go on with the same command")
        return stop.exit_code
    return 0


def _check_launch(launch: Launch, command: load.Command) -> None:
    """`ConfigError` where a launcher started several processes for what one process does."""
    from config.command import SHARED_MODES

    request = command.request
    if not launch.several:
        return
    started = f"{launch.launcher} started {launch.world_size} processes"
    if request.dry_run:
        raise ConfigError(f"{started}, and --dry_run measures one: start it without {launch.launcher}")
    if request.spread and command.members[0].settings.resume == "never":
        raise ConfigError(
            "resume: never, and each process of --spread folds would make a folder of its own; give --name NAME for a "
            "new campaign, or --resume PATH"
        )
    if request.spread or not request.mode:
        return
    if request.mode in SHARED_MODES:
        raise ConfigError(f"{started}: add --spread folds, so that each takes folds of its own")
    raise ConfigError(f"{started}, and --mode {request.mode} takes one: start it without {launch.launcher}")


def _in_group(engine: str, settings: Settings, launch: Launch, stop: StopSignal) -> None:
    """Train in the processes of a launcher."""
    import backends
    from training.run import train_run

    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) and settings.resume == "never":
        settings = settings.model_copy(update={"resume": "auto"})  # the run that the first start made
    running = GroupRun(launch)
    group = backends.load(engine).join(launch)
    with running:
        folder = train_run.run_all(engine, settings, stop, group, running.open)
        group.close()
        print(f"finished: {folder / 'report.html'}")


def _again(prog: str, request: RunRequest) -> str:
    """The command that resumes the same request, without the folder; a single run knows its folds itself."""
    from config.launch import Launch

    words = [f"--mode {request.mode}"] * bool(request.mode) + ["--tune"] * request.tune
    if request.mode:
        words += [f"--member {request.member}"] * bool(request.member) + [f"--fold {request.fold}"] * (
            request.fold is not None
        )
        words += ["--spread folds"] * request.spread
    launch = Launch.of(os.environ)
    one_host = launch.several and launch.launcher == "torchrun" and launch.local_world_size == launch.world_size
    start = f"torchrun --nproc_per_node {launch.world_size}" if one_host else "python"  # a run resumes with either
    return " ".join([start, prog, *words])
