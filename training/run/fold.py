"""One fold of a run: its data, its session, its training in the memory that there is, and its result.

`train_run` and `campaign.train_members` train folds by these functions; `trainer` has the loop.
"""

from __future__ import annotations

import functools
import gc
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import backends
from backends.contract import Backend, CompileMode, Session, SessionConfig, Weights
from backends.group import ALONE, Group
from config.errors import CheckpointError, DataError, Interrupted, OutOfMemory
from config.places import atomic_write
from config.schema import Settings
from config.sections.data import Data
from config.text import counted
from data import folds
from data.augment import transforms
from data.augment.corrupt import Corrupted
from data.cache import disk
from data.cache.images import Source
from data.loading.loader import Loader
from data.loading.samples import ByEpoch, Transform
from data.sources import packed
from data.streaming.order import StreamOrder
from models import limits
from models.card import Card
from models.registry import ModelSpec
from models.weights import loading
from training.distributed import ranks
from training.distributed.resume import newest_checkpoint
from training.loop import checkpoint, compiling, memory, metrics, trainer
from training.loop.fold_data import FoldData
from training.loop.rehearsal import Ahead, rehearse
from training.loop.state import Callbacks, TrainerState
from training.policy import finetune, optimizer, resizing, sampling
from training.policy import loss as losses
from training.run import distillation, outcome, probe, results, run_dir
from training.run.prepare import SharedData, prepare
from training.run.progress import OnEpoch, Progress
from training.trackers import machine

_Done = TypeVar("_Done")
_STATISTICS = "batch_norm.txt"  # what optim.batch_norm auto decided, for a resumed run


@dataclass(frozen=True)
class Job:
    """A run whose settings are resolved against model and data. `on_epoch` gets each epoch's row."""

    backend: str
    settings: Settings
    spec: ModelSpec
    data: SharedData
    teaching: distillation.DistillationData
    folder: Path
    stop_requested: Callable[[], bool]
    on_epoch: OnEpoch = lambda *_: None
    group: Group = ALONE

    @functools.cached_property
    def card(self) -> Card:
        """The card of what is trained."""
        names, labels = self.data.table.class_names, self.data.table.labels
        counts = tuple(np.bincount(labels, minlength=len(names)).tolist())
        prep, options = self.spec.preprocessing, dict(self.spec.options)
        return Card(self.settings.model, names, prep, options, trained_with=self.backend, class_counts=counts)

    def folds(self, numbers: Sequence[int]) -> list[Path]:
        """The folders of its folds."""
        return [self.folder / f"fold_{k}" for k in numbers]


def job_of(
    engine: str, settings: Settings, data: SharedData, folder: Path, stop_requested: Callable[[], bool] = lambda: False
) -> Job:
    """The job of settings that are not resolved yet. Raises what is wrong with them, the model and the teacher."""
    settings, spec, table = prepare(settings, data.table)
    return Job(engine, settings, spec, data, distillation.read(settings, table), folder, stop_requested)


def train(job: Job, number: int) -> dict[str, Any]:
    """Train one fold, or read its result where it is finished."""
    folder = job.folder / f"fold_{number}"
    if done := ranks.decided(job.group, lambda: _result(folder)):
        return done
    started = time.monotonic()
    with outcome.recorded(folder, job.backend, job.group, job.stop_requested):
        data = ranks.together(job.group, lambda: load_data(job, number))
        loop = as_it_fits(job, number, data, lambda micro: _trained(job, number, data, folder, micro))
        if ranks.any_of(job.group, job.stop_requested()):
            raise Interrupted(job.folder)
        return ranks.decided(job.group, lambda: _finish(folder, number, loop, time.monotonic() - started))


def _result(folder: Path) -> dict[str, Any] | None:
    """The result of a finished fold; else None, and its folder is made."""
    done = folder / run_dir.RESULT
    if done.exists():
        return dict(results.read_yaml(done))
    folder.mkdir(exist_ok=True)
    return None


def as_it_fits(job: Job, number: int, data: FoldData, work: Callable[[int], _Done]) -> _Done:
    """What `work` returns for a micro-batch, 0 for that of the settings. It is halved as often as the device's memory
    runs out, and the fold's folder remembers it.

    Where one of several processes runs out of memory, the others wait for it in the middle of an update: all have to
    restart, as torchrun's `--max_restarts` does, and resume with the remembered micro-batch.
    """
    folder, batch = job.folder / f"fold_{number}", math.gcd(*(ranks.share(s.batch, job.group) for s in data.stages))
    micro = ranks.decided(job.group, lambda: memory.remembered(folder))
    micro = 0 if batch % max(micro, 1) else micro  # it may be of fewer processes
    while True:
        try:
            return work(micro)
        except OutOfMemory as error:
            micro = micro or optimizer.memory(job.settings.train).size(batch)
            micro = memory.halved(micro, batch, error, fewest(job, data.stages))
            alone = job.group.world_size > 1 and not error.on_all_ranks
            if alone or job.group.rank == 0:
                memory.remember(folder, micro)
            if alone:
                raise OutOfMemory(
                    f"{error}; start it again: it goes on with {counted(micro, 'image')} at a time"
                ) from None
        print(f"fold {number}: out of memory; going on with {micro} of the batch's {batch} images at a time")
        gc.collect()  # what the broken update held


def fewest(job: Job, stages: Sequence[resizing.ResizeStage]) -> int:
    """The fewest images that may pass the network at a time."""
    networks = backends.ENGINES[job.backend].builds_networks
    return max(limits.fewest(job.spec, stage.size) for stage in stages) if networks else 1


def _trained(job: Job, number: int, data: FoldData, folder: Path, micro: int) -> TrainerState:
    settings, several = job.settings, job.group.world_size > 1
    begun = newest_checkpoint(job.group, folder, print)
    last, resize_schedule = data.stages[-1], resizing.ResizeSchedule(data.stages, len(data.train_labels))
    done = resize_schedule.update(checkpoint.read_state(begun)["loop"]["epoch"], 0) if begun else 0
    batch = ranks.share(last.batch, job.group)
    ahead = Ahead(resize_schedule.updates - done, batch, last.size, job.spec.num_classes, folder)
    tries = settings.train.micro_batch == "auto" and begun is None
    if tries and several:
        ranks.together(job.group, lambda: _rehearse_alone(job, number, micro, ahead))
    with closing(open_session(job, number, micro, ahead)) as session, ExitStack() as held:
        if tries and not several:
            rehearse(session, ahead)
        described, events = session.describe(), Callbacks(say=print)
        if job.group.rank == 0:
            run_dir.write_environment(job.folder, job.backend, described)
            progress = Progress(settings, number, data, folder, session.describe, job.on_epoch)
            events = held.enter_context(progress).events
        events.say(f"{folder.name}: {machine.started(described)}")
        fit = trainer.Trainer(session, data, settings, job.card, folder, events, job.stop_requested)
        loop = fit.run()
        if job.group.rank == 0 and (suspects := fit.suspects()):
            paths, table = data.train[-1].paths, job.data.table
            ids = dict(zip(table.paths, table.ids, strict=True))
            rows = [
                (ids.get(paths[i], str(paths[i])), table.class_names[data.train_labels[i]], fit.mining.losses[i])
                for i in suspects
            ]
            results.write_suspects(folder, rows)
    return loop


def _rehearse_alone(job: Job, number: int, micro: int, ahead: Ahead) -> None:
    """Try an update with this process's images of a batch, and no other process to wait for."""
    with closing(open_session(replace(job, group=ALONE), number, micro)) as session:
        rehearse(session, ahead)


def open_session(job: Job, number: int, micro_batch: int, ahead: Ahead | None = None) -> Session:
    """The fold's session with its initial weights; `micro_batch` 0 is that of the settings, and `ahead` what is left to
    train."""
    settings, spec, backend = job.settings, job.spec, backends.load(job.backend)
    labels = job.data.table.labels[~folds.validates(job.data.fold_of, number)]
    start, fixed = ranks.decided(job.group, lambda: _start(job, backend, number)[:2])
    optim = replace(optimizer.spec(settings.optim, settings.ema.decay > 0, spec, start), fixed_statistics=fixed)
    loss, train = losses.spec(settings.loss, labels, spec.num_classes), settings.train
    config = SessionConfig(
        optim=optim,
        loss=loss,
        precision=train.precision,
        seed=settings.seed,
        memory=optimizer.memory(train, micro_batch),
        deterministic=train.deterministic,
        sync_batch_norm=train.sync_batch_norm,
        fsdp=train.fsdp,
    )

    def opened(compile: bool | CompileMode, group: Group = ALONE) -> Session:
        return backend.open(spec, start, replace(config, compile=compile), group)

    if job.group.world_size == 1:
        return compiling.session(opened, job.backend, train, ahead)
    chosen = ranks.decided(job.group, lambda: compiling.choice(opened, job.backend, train, ahead))
    return ranks.together(job.group, lambda: opened(chosen, job.group))


def _start(job: Job, backend: Backend, number: int) -> probe.Start:
    """The initial weights: those of the fold's checkpoint, pretrained ones made to fit, or random ones."""
    folder, fixed = job.folder / f"fold_{number}", job.settings.optim.batch_norm == "fixed"
    begun, statistics = checkpoint.newest(folder), folder / _STATISTICS
    if begun:
        if job.settings.optim.batch_norm == "auto" and statistics.exists():
            fixed = statistics.read_text().strip() == "fixed"
        return probe.Start(loading.read(begun / "model.safetensors")[0], fixed)
    spec, settings = job.spec, job.settings
    pretrained = loading.resolve(spec, _source(settings.weights, number), settings.weights_ema)
    if pretrained is not None:
        fitted, notes = loading.fit(pretrained.weights, spec)
        for note in (*pretrained.notes, *notes):
            print(note)
        start = _probed(job, backend, number, fitted, probe.is_needed(pretrained.weights, spec))
        atomic_write(statistics, "fixed\n" if start.fixed_statistics else "batch\n")
        return start
    with closing(backend.open(spec, None, SessionConfig(seed=settings.seed, compile=False))) as session:
        return probe.Start(session.state().weights, fixed)


def _probed(job: Job, backend: Backend, number: int, start: Weights, new_head: bool) -> probe.Start:
    """`start` after `probe.started` on the fold's training images, where these are few."""
    settings, table = job.settings, job.data.table
    train = np.flatnonzero(~folds.validates(job.data.fold_of, number) & (table.labels >= 0))
    single = isinstance(job.spec.classifier, str) and bool(job.spec.classifier)
    if not single or not finetune.few(len(train), job.spec.num_classes):
        return probe.Start(start, settings.optim.batch_norm == "fixed")
    batch = min(int(settings.train.batch_size or 1), len(train))
    loader = _valid_loader(job, [table.paths[i] for i in train], batch, None)
    probed = probe.started(backend, job.spec, settings, start, loader, table.labels[train], new_head, job.data.images)
    for note in probed.notes:
        print(f"fold {number}: {note}")
    return probed


def _source(wanted: str, number: int) -> str:
    """The value of `weights`; for a run, the best checkpoint of its fold of that number."""
    best = Path(wanted).expanduser() / f"fold_{number}" / checkpoint.BEST
    if best.is_dir():
        return str(best)
    if any(Path(wanted).expanduser().glob(f"fold_*/{checkpoint.BEST}")):
        raise CheckpointError(f"weights: {wanted} has no trained fold {number}; train it there, or name a checkpoint")
    return wanted


def load_data(job: Job, number: int) -> FoldData:
    """What a fold trains and validates on; `DataError` where one side is empty."""
    settings, table = job.settings, job.data.table
    judged = folds.validates(job.data.fold_of, number)
    train, valid = np.flatnonzero(~judged), np.flatnonzero(judged)
    if not len(train) or not len(valid):
        raise DataError(f"fold {number} has {len(train)} training and {len(valid)} validation images; change folds")
    targets = distillation.training_targets(job.teaching, table, train, number)
    batch = min(int(settings.train.batch_size or 1), len(targets.paths))
    stages = resizing.stages(settings.progressive, settings.train, job.spec, batch, len(targets.paths))
    shares = [ranks.share(stage.batch, job.group) for stage in stages]
    micro = optimizer.memory(settings.train).size(shares[-1])  # refuses a micro-batch that does not divide it
    for stage in stages if backends.ENGINES[job.backend].builds_networks else ():
        limits.check_batch(job.spec, stage.size, micro, f"fold {number}: a micro-batch of")
    sources, judging = _sources(job), [table.paths[i] for i in valid]
    judging_batch = settings.train.val_batch_size or batch
    corrupted, prep = None, job.card.preprocessing
    if settings.stopping.robust_weight > 0:  # the validation images, damaged in the same way every time
        corrupted = _loader(job, judging, Corrupted(prep), prep.size, judging_batch, job.data.images)
    return FoldData(
        stages=stages,
        train=tuple(_train_loader(job, stage, targets.paths, sources.train) for stage in stages),
        train_labels=targets.labels,
        train_targets=targets.targets,
        train_weights=targets.weights,
        valid=_valid_loader(job, judging, judging_batch, sources.judged),
        valid_labels=table.labels[valid],
        valid_ids=[table.ids[i] for i in valid],
        raise_to=sampling.raise_to(settings.sampling, table.class_names),
        corrupted=corrupted,
        stream_order=_stream_order(settings.data, targets.paths, judging, stages),
    )


def _stream_order(
    data: Data, paths: Sequence[Path], valid: Sequence[Path], stages: Sequence[resizing.ResizeStage]
) -> StreamOrder | None:
    """The order in which shards are streamed; an image outside of shards counts as a shard of its own. Says where that
    is not what a user may expect."""
    if not data.streaming:
        return None
    numbers: dict[Path, int] = {}
    shard = np.array([numbers.setdefault(packed.file_of(path), len(numbers)) for path in paths], np.int64)
    streams = math.gcd(data.streams, *(stage.batch for stage in stages))
    if streams < data.streams:
        batches = ", ".join(str(stage.batch) for stage in stages)
        print(f"streaming: {streams} streams, as data.streams {data.streams} does not divide batches of {batches}")
    both = numbers.keys() & {packed.file_of(path) for path in valid}
    if both:
        print(
            f"streaming: {len(both)} of {len(numbers)} shards hold images that train and images that validate, so that "
            "each is read twice an epoch; --folds.strategy stratified_group --folds.group_column shard parts them"
        )
    return StreamOrder(shard, streams, data.shuffle_buffer)


def _sources(job: Job) -> disk.Sources:
    """Where the fold's pixels come from: a cache of all of the run's images, or the files."""
    paths = [*job.data.table.paths, *job.teaching.paths()]
    prep = job.card.preprocessing
    try:
        return disk.sources(job.settings.data, prep, paths, job.data.images, job.stop_requested)
    except disk.Stopped:
        raise Interrupted(job.folder) from None


def _train_loader(job: Job, stage: resizing.ResizeStage, paths: Sequence[Path], source: Source) -> Loader:
    prep = replace(job.card.preprocessing, size=stage.size, resampling="area")
    transform = transforms.by_epoch(job.settings.augment, prep, job.settings.train.epochs)
    return _loader(job, paths, transform, stage.size, stage.batch, source, (job.group.rank, job.group.world_size))


def _valid_loader(job: Job, paths: Sequence[Path], batch: int, squares: Source | None) -> Loader:
    prep = job.card.preprocessing
    transform = transforms.EvalTransform(prep) if squares is None else transforms.as_it_is
    return _loader(job, paths, transform, prep.size, batch, squares or job.data.images)


def _loader(
    job: Job,
    paths: Sequence[Path],
    transform: Transform | ByEpoch,
    size: int,
    batch: int,
    source: Source,
    rank_of_world: tuple[int, int] = (0, 1),
) -> Loader:
    data = job.settings.data
    return Loader(
        paths,
        transform,
        size,
        batch,
        data.workers,
        job.settings.seed,
        source,
        data.on_bad_image != "error",
        data.processes,
        int(data.shard_cache_gb * 1e9),
        rank_of_world,
    )


def _finish(folder: Path, number: int, loop: TrainerState, seconds: float) -> dict[str, Any]:
    with np.load(folder / "oof.npz") as oof:
        scores = metrics.scores(oof["logits"], oof["targets"])
    best = loop.history[loop.stopping.best_epoch]
    row = {
        "fold": number,
        **{name: round(value, 6) for name, value in scores.items()},
        **{name: round(value, 6) for name, value in best.items() if name.startswith("corrupted_")},
        "best_epoch": loop.stopping.best_epoch + 1,
        "weights": checkpoint.read_state(folder / checkpoint.BEST).get("averaged", "epoch"),
        "epochs": len(loop.history),
        "unreadable": int(sum(row["unreadable"] for row in loop.history)),
        "seconds": round(seconds, 1),
    }
    run_dir.write_yaml(folder / run_dir.RESULT, row)
    return row
