"""`--dry_run`: what a run or a campaign will take, measured by a few updates of each member.

The updates are those of the real loop, in a temporary folder that is removed afterwards: no run folder is written. The
figures are estimates: early stopping may end a fold sooner, and the audit and the report are not counted.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import psutil

import backends
from backends.contract import Session
from config import load
from config.command import RunRequest
from config.errors import ConfigError, Diverged, OutOfMemory
from config.members import Member
from config.schema import Settings
from config.text import counted, duration
from data import sources
from data.audit import actions
from data.cache.images import Images
from training.campaign import members, preflight, start, train_members
from training.loop import checkpoint, evaluation, memory
from training.loop.fold_data import FoldData
from training.loop.rehearsal import Ahead, rehearse
from training.loop.state import Callbacks
from training.loop.trainer import Trainer
from training.policy import optimizer
from training.policy.resizing import ResizeSchedule
from training.run import auto_model, distillation, fold, run_dir
from training.run.prepare import FOLDS, SharedData, describe, draw_folds, fold_numbers, prepare, refuse, split
from training.trackers import machine

_GIB = 2**30
_WARM = 8  # updates before the pace is steady: those in flight, and batches that the loader had ready
_FEWEST, _SECONDS = 4, 8.0  # updates and time that are measured after these
_SLOW = 5.0  # an update that takes longer is measured once, on empty images
_EVALUATED = 4  # batches of validation images that are timed


@dataclass(frozen=True)
class Estimate:
    """What is left to train of one run. `epochs` of each fold's; times in seconds, sizes in bytes."""

    path: Path
    resumed: bool
    folds: dict[int, int]
    train_images: int
    valid_images: int
    updates: int
    seconds: float
    update_seconds: float
    waiting: float
    measured: int
    started: str
    batch: str
    device_memory: int
    device_limit: int
    process_memory: int
    disk: int


@dataclass
class Pace:
    """When each update and each epoch of a loop ended; `enough` says when to stop measuring."""

    updates: list[tuple[int, float]] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)

    def step(self, epoch: int, *_: object) -> None:
        """An update of `epoch` has ended."""
        self.updates.append((epoch, time.perf_counter()))

    def epoch(self, *_: object) -> None:
        """An epoch has ended, with its validation."""
        self.epochs.append(time.perf_counter())

    def enough(self) -> bool:
        """Whether as many updates were seen as an estimate needs."""
        steady = self.updates[_WARM:]
        return len(steady) > _FEWEST and steady[-1][1] - steady[0][1] > _SECONDS

    def seconds(self) -> float:
        """The median time of an update within an epoch, which other programs disturb less than the mean; across epochs
        where none has two updates."""
        steady = self.updates[_WARM:] if len(self.updates) > _WARM + 1 else self.updates
        within = [b - a for (epoch, a), (next_epoch, b) in pairwise(steady) if epoch == next_epoch]
        return statistics.median(within or [b - a for (_, a), (_, b) in pairwise(steady)] or [0.0])

    def epoch_seconds(self) -> float | None:
        """The mean time of an epoch with all that belongs to it, after the first; None where two have not ended."""
        return (self.epochs[-1] - self.epochs[0]) / (len(self.epochs) - 1) if len(self.epochs) > 1 else None


def lines(engine: str, command: load.Command) -> list[str]:
    """The plan of a command line, for people. Raises what the training would raise before its first epoch."""
    request = command.request
    if request.mode not in ("", "train", "full"):
        raise ConfigError(
            f"dry_run: --mode {request.mode} trains nothing; use it with a single run, --mode train or full"
        )
    backends.require(engine)
    if not request.mode:
        chosen = auto_model.resolve(command.settings, engine)
        refuse(chosen.settings, engine)
        settings, _, table = prepare(chosen.settings, chosen.table)
        print(*describe(settings, table), sep="\n")
        run = run_dir.existing(settings, engine)
        return _run_lines(_estimate(engine, settings, table, run or run_dir.new(settings, engine), run is not None))
    return _campaign_lines(engine, start.with_models(engine, command.members)[0], request)


def _campaign_lines(engine: str, listed: Sequence[Member], request: RunRequest) -> list[str]:
    resumed = members.existing(listed)
    campaign = members.named(engine, resumed or members.new(listed), listed)
    able = train_members.trainable(campaign, request)
    table = actions.load(campaign.settings.data).table
    print(*describe(campaign.settings, table), sep="\n")
    report = []
    if request.mode == "full":
        with tempfile.TemporaryDirectory() as folder:
            report += preflight.check(campaign.settings, Path(folder))
    estimates = {}
    for member in able:
        print(f"measuring {member.name}", flush=True)
        settings = member.settings
        if request.fold is not None:
            settings = load.changed(settings, {"folds.train": [request.fold]}, "--fold")
        shared = campaign.folder / FOLDS
        if shared.exists():
            settings = load.changed(settings, {"folds.file": str(shared)}, "the campaign's folds")
        run = campaign.run(member)
        estimates[member.name] = _estimate(engine, settings, table, run, run.exists())
    width = max(len("member"), *map(len, estimates))
    report.append(f"{'member':{width}}  folds  updates      time  device memory       disk")
    report += [
        f"{name:{width}}  {len(member.folds):5}  {member.updates:7,}  {duration(member.seconds):>8}  "
        f"{_gib(member.device_memory or member.process_memory):>13}  {_gib(member.disk):>9}"
        for name, member in estimates.items()
    ]
    return [
        *report,
        f"time     in all, on this machine alone: {_about(sum(member.seconds for member in estimates.values()))}",
        _disk_line(sum(member.disk for member in estimates.values()), campaign.folder),
        f"writes   {campaign.folder}, {'resumed' if resumed else 'a new folder'}: campaign.yaml, folds.csv, "
        "members/NAME (a run each)",
        "nothing was written; leave out --dry_run to start",
    ]


def _estimate(engine: str, settings: Settings, table: sources.Table, path: Path, resumed: bool) -> Estimate:
    # Not the cache: it would be filled with every image first.
    data = settings.data.model_copy(update={"cache_gb": 0})
    images = Images.of(data, table.turns)
    if (path / FOLDS).exists():
        shared = split(settings, table, images, path)
    else:
        fold_of = draw_folds(settings, table)
        shared = SharedData(table, images, fold_of, fold_numbers(settings, fold_of))
    numbers = shared.numbers
    with tempfile.TemporaryDirectory(prefix="tandem_dry_run_") as folder:
        job = fold.job_of(engine, settings.model_copy(update={"data": data}), shared, Path(folder))
        distillation.check(job.teaching, shared.table, shared.fold_of, numbers)
        left = {k: _epochs_left(path / f"fold_{k}", job.settings.train.epochs) for k in numbers}
        (Path(folder) / f"fold_{numbers[0]}").mkdir()
        try:
            return _measured(job, numbers[0], path, resumed, left)
        except Diverged as error:  # which names a folder that is gone by then
            raise Diverged(str(error).replace(folder, str(path))) from None


def _epochs_left(folder: Path, epochs: int) -> int:
    """Epochs that a fold has to train yet: none where it is finished."""
    if (folder / run_dir.RESULT).exists():
        return 0
    begun = checkpoint.steps(folder)
    return epochs - int(checkpoint.read_state(begun[-1])["loop"]["epoch"]) if begun else epochs


def _measured(job: fold.Job, number: int, path: Path, resumed: bool, left: dict[int, int]) -> Estimate:
    folder, settings, clock = job.folder / f"fold_{number}", job.settings, time.perf_counter()
    data = fold.load_data(job, number)
    resizing = ResizeSchedule(data.stages, len(data.train_labels))
    last = data.stages[-1]
    todo = Ahead(resizing.updates, last.batch, last.size, job.spec.num_classes, folder)
    session, alone = fold.as_it_fits(job, number, data, lambda micro: _tried(job, number, todo, micro))
    micro = memory.remembered(folder) or optimizer.memory(settings.train).size(last.batch)
    with closing(session):
        opening = time.perf_counter() - clock
        pace, waiting = Pace(), 0.0
        if alone < _SLOW:
            # The last stage alone: the others take their share of its time by their pixels.
            full = replace(data, stages=(replace(last, epochs=settings.train.epochs),), train=data.train[-1:])
            events = Callbacks(step=pace.step, epoch=pace.epoch)
            loop = Trainer(session, full, settings, job.card, folder, events, pace.enough)
            loop.run()
            waiting = loop.clock.waited / max(loop.clock.waited + loop.clock.computed, 1e-9)
        else:
            checkpoint.save(folder, job.card, session.state(), {})
        described = session.describe()
        update = pace.seconds() or alone
        full_epoch = pace.epoch_seconds() or resizing.last_steps * update + _validation(session, data)
    # The epochs of other stages take longer or shorter by the pixels that they train on.
    stages = [resizing.stages[resizing.number(epoch)] for epoch in range(settings.train.epochs)]
    pixels = [resizing.steps(epoch) * stage.batch * stage.size**2 for epoch, stage in enumerate(stages)]
    epoch_seconds = [full_epoch * count / pixels[-1] for count in pixels]
    ahead = [epochs for epochs in left.values() if epochs]
    return Estimate(
        path=path,
        resumed=resumed,
        folds=left,
        train_images=len(data.train_labels),
        valid_images=len(data.valid_labels),
        updates=sum(resizing.updates - resizing.update(settings.train.epochs - epochs, 0) for epochs in ahead),
        seconds=sum(opening + sum(epoch_seconds[len(epoch_seconds) - epochs :]) for epochs in ahead),
        update_seconds=update,
        waiting=waiting,
        measured=len(pace.updates) or 1,
        started=machine.started(described),
        batch=f"{counted(last.batch, 'image')}" + (f", {micro} at a time" if micro < last.batch else ""),
        device_memory=0 if "cpu" in described["device"] else max(described["memory"].values(), default=0),
        device_limit=described.get("memory_limit", 0),
        process_memory=psutil.Process().memory_info().rss,
        disk=len(ahead) * _fold_bytes(folder, settings),
    )


def _tried(job: fold.Job, number: int, ahead: Ahead, micro: int) -> tuple[Session, float]:
    """The fold's session for so many images at a time, and the seconds of an update on empty ones."""
    session = fold.open_session(job, number, micro, ahead)
    try:
        return session, rehearse(session, ahead, 2)[-1]
    except OutOfMemory:
        session.close()
        raise


def _validation(session: Session, data: FoldData) -> float:
    """Seconds of one validation, by its first batches after one that is not timed."""
    count = len(data.valid_labels)
    evaluation.evaluate(session, data.valid, min(count, data.valid.batch_size))
    some, clock = min(count, _EVALUATED * data.valid.batch_size), time.perf_counter()
    evaluation.evaluate(session, data.valid, some)
    return (time.perf_counter() - clock) * count / some


def _fold_bytes(folder: Path, settings: Settings) -> int:
    """What a fold's checkpoints take at most: those that are kept, one that is being written, and the best."""
    newest = checkpoint.steps(folder)[-1]
    size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    copies = 2 if settings.soup or settings.swa.epochs else 1
    return (settings.checkpoint.keep + 1) * size + copies * (newest / "model.safetensors").stat().st_size


def _run_lines(run: Estimate) -> list[str]:
    ahead = [epochs for epochs in run.folds.values() if epochs]
    if not ahead:
        return [f"{run.path} is finished already; nothing is left to train"]
    done = f"; {len(run.folds) - len(ahead)} finished" if len(ahead) < len(run.folds) else ""
    numbers = ", ".join(str(k) for k, epochs in run.folds.items() if epochs)
    limit = f" of {_gib(run.device_limit)}" if run.device_limit else ""
    on_device = f"{_gib(run.device_memory)}{limit} on the device, " if run.device_memory else ""
    return [
        f"device   {run.started}",
        f"folds    {len(ahead)} ({numbers}) of {run.train_images:,} training and "
        f"{counted(run.valid_images, 'validation image')}{done}",
        f"updates  {run.updates:,} of {run.batch}; at most {counted(max(ahead), 'epoch')} a fold",
        f"time     {_about(run.seconds)}; {run.update_seconds:.3g} s an update ({run.measured} measured), "
        f"{run.waiting:.0%} of it waiting for data",
        f"memory   {on_device}{_gib(run.process_memory)} of {_gib(psutil.virtual_memory().total)} in this process",
        _disk_line(run.disk, run.path),
        f"writes   {run.path}, {'resumed' if run.resumed else 'a new folder'}: config.yaml, folds.csv, fold_K "
        "(checkpoints, history.csv, oof.npz), report.html",
        "nothing was written; leave out --dry_run to start",
    ]


def _disk_line(disk: int, path: Path) -> str:
    folder = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    short = "; TOO LITTLE: free some, or lower checkpoint.keep" if disk > free else ""
    return f"disk     {_gib(disk)} at most for checkpoints; {_gib(free)} are free at {folder}{short}"


def _gib(count: float) -> str:
    """Bytes for people."""
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / 2**20:.0f} MiB"


def _about(seconds: float) -> str:
    end = time.strftime("%a %H:%M", time.localtime(time.time() + seconds))
    return f"about {duration(seconds)}, until {end} if it starts now"
