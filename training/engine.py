"""The only training loop. It decides nothing about arithmetic and knows no framework: it feeds a session what
`policy` decided, follows the scores, and writes checkpoints from which it goes on exactly where it stood.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.contract import Batch, Knobs, MixPlan, Session, StepResult, Which
from config.errors import Diverged
from config.schema import Settings
from data.loader import Loaded, Loader
from data.sampler import epoch_order
from models.card import Card
from training import checkpoint, metrics
from training.policy import mix, schedule
from training.policy.stopping import Stopping

_IN_FLIGHT = 4  # updates enqueued before the oldest one's result is read
_MAX_SKIPPED = 20  # non-finite updates in a row that end a run


@dataclass(frozen=True)
class FoldData:
    """What one fold trains and validates on. `targets` are float32 `[N, C]` rows for the loss, `labels` int64 `[M]`."""

    train: Loader
    train_targets: NDArray[np.float32]
    valid: Loader
    valid_labels: NDArray[np.int64]
    valid_ids: list[str]
    size: int


@dataclass
class Totals:
    """Running sums of one epoch, saved in the middle of it. Times are seconds and stay out of every decision."""

    loss: float = 0.0
    samples: int = 0
    skipped: int = 0
    waited: float = 0.0
    computed: float = 0.0
    saved: float = 0.0


@dataclass
class Loop:
    """Where a fold stands: all that a checkpoint keeps beside the session's own state."""

    epoch: int = 0
    batch: int = 0
    skipped_in_a_row: int = 0
    totals: Totals = field(default_factory=Totals)
    stopping: Stopping = field(default_factory=lambda: Stopping("macro_f1"))
    history: list[dict[str, float]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def from_json(raw: dict[str, Any]) -> Loop:
        """The inverse of `to_json`; other keys are left alone."""
        return Loop(
            raw["epoch"],
            raw["batch"],
            raw["skipped_in_a_row"],
            Totals(**raw["totals"]),
            Stopping(**raw["stopping"]),
            raw["history"],
        )


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Events:
    """What the loop tells whoever watches: a progress bar, a log, a tracker. Nothing they do changes the run."""

    step: Callable[[int, int, int, float], None] = _ignore
    epoch: Callable[[dict[str, float], bool], None] = _ignore
    say: Callable[[str], None] = _ignore


class Fit:
    """One fold's training: `Fit(...).run()`. The parts that the loop needs at every step are fields."""

    def __init__(
        self,
        session: Session,
        data: FoldData,
        settings: Settings,
        card: Card,
        folder: Path,
        events: Events,
        stop_requested: Callable[[], bool] = lambda: False,
    ):
        self.session, self.data, self.settings = session, data, settings
        self.card, self.folder, self.events = card, folder, events
        self.stop_requested = stop_requested
        self.count = len(data.train_targets)
        self.batch_size = data.train.batch_size
        self.steps = self.count // self.batch_size
        self.schedule = schedule_of(settings, self.steps)
        self.loop = Loop(
            stopping=Stopping(settings.stopping.metric, settings.stopping.patience, settings.stopping.min_delta)
        )
        self.pending: deque[Any] = deque()
        self.saved_at = time.monotonic()

    def run(self) -> Loop:
        """Train to the end or until the patience is used up; resumes from the newest whole checkpoint in `folder`."""
        self._resume()
        while self.loop.epoch < self.settings.train.epochs and not self.loop.stopping.stop:
            self._train_epoch()
            if self.stop_requested():
                break
            self._close_epoch()
        return self.loop

    def _resume(self) -> None:
        checkpoint.recover_best(self.folder)
        found = checkpoint.newest(self.folder)
        if found:
            state, raw = checkpoint.load(found)
            self.session.load(state)
            self.loop = Loop.from_json(raw["loop"])
            self.events.say(f"resumed from {found}: epoch {self.loop.epoch + 1}, batch {self.loop.batch}")

    def _train_epoch(self) -> None:
        loop = self.loop
        order = epoch_order(self.count, self.settings.seed, loop.epoch)[: self.steps * self.batch_size]
        clock = time.perf_counter()
        for loaded in self.data.train.epoch(order, loop.epoch, first_batch=loop.batch):
            loop.totals.waited += time.perf_counter() - clock
            clock = time.perf_counter()
            self._step(loaded)
            loop.totals.computed += time.perf_counter() - clock
            if self._checkpoint_due():
                self.save()
            if self.stop_requested():
                self.save()
                return
            clock = time.perf_counter()
        self._drain()
        loop.totals.computed += time.perf_counter() - clock

    def _step(self, loaded: Loaded) -> None:
        loop, step = self.loop, self.loop.epoch * self.steps + self.loop.batch
        batch = Batch(loaded.images, self.data.train_targets[loaded.index], loaded.weight)
        self.pending.append(self.session.train_step(batch, self._mix(step), self._knobs(step)))
        loop.batch += 1
        if len(self.pending) > _IN_FLIGHT:
            self._read_one()
        mean = loop.totals.loss / max(loop.totals.samples, 1)
        self.events.step(loop.epoch, loop.batch, self.batch_size, mean)

    def _mix(self, step: int) -> MixPlan | None:
        left = self.settings.train.epochs - self.loop.epoch
        return mix.plan(self.settings.mix, self.batch_size, self.data.size, self.settings.seed, step, left)

    def _knobs(self, step: int) -> Knobs:
        optim = self.settings.optim
        rate = schedule.learning_rate(self.schedule, step)
        return Knobs(rate, optim.weight_decay, schedule.ema_decay(self.settings.ema.decay, step), optim.clip_norm)

    def _read_one(self) -> None:
        result: StepResult = self.session.read(self.pending.popleft())
        totals = self.loop.totals
        if result.finite:
            self.loop.skipped_in_a_row = 0
            totals.loss += float(result.losses.sum(dtype=np.float64))
            totals.samples += len(result.losses)
            return
        totals.skipped += 1
        self.loop.skipped_in_a_row += 1
        self.events.say(f"epoch {self.loop.epoch + 1}: an update was not finite and was skipped")
        if self.loop.skipped_in_a_row >= _MAX_SKIPPED:
            raise Diverged(
                f"{_MAX_SKIPPED} updates in a row were not finite (epoch {self.loop.epoch + 1}, "
                f"batch {self.loop.batch}); lower optim.lr, or set train.precision fp32"
            )

    def _drain(self) -> None:
        while self.pending:
            self._read_one()

    def _close_epoch(self) -> None:
        """Validate, follow the best, write the epoch's row and a checkpoint."""
        loop = self.loop
        which: Which = "ema" if self.settings.ema.decay > 0 else "live"
        logits = evaluate(self.session, self.data.valid, len(self.data.valid_labels), which)
        row = self._row(metrics.scores(logits, self.data.valid_labels))
        loop.history.append(row)
        best = loop.stopping.update(row[loop.stopping.metric], loop.epoch)
        if best:
            state = self.session.state()
            chosen = state.ema if state.ema is not None else state.weights
            checkpoint.save_best(self.folder, self.card, chosen, {"epoch": loop.epoch, "scores": row})
            write_oof(self.folder, self.data, logits)
        self.events.epoch(row, best)
        loop.epoch, loop.batch, loop.totals = loop.epoch + 1, 0, Totals()
        if loop.epoch % self.settings.checkpoint.every_epochs == 0 or loop.epoch == self.settings.train.epochs:
            self.save()

    def _row(self, scores: dict[str, float]) -> dict[str, float]:
        totals = self.loop.totals
        spent = max(totals.waited + totals.computed + totals.saved, 1e-9)
        return {
            "epoch": self.loop.epoch + 1,
            "lr": self._knobs(self.loop.epoch * self.steps + self.steps - 1).lr,
            "train_loss": totals.loss / max(totals.samples, 1),
            **scores,
            "skipped": totals.skipped,
            "seconds": round(spent, 3),
            "images_per_second": round(self.steps * self.batch_size / spent, 1),
            "waiting": round(totals.waited / spent, 3),
        }

    def _checkpoint_due(self) -> bool:
        cadence = self.settings.checkpoint
        by_steps = cadence.every_steps > 0 and self.loop.batch % cadence.every_steps == 0
        by_time = cadence.every_minutes > 0 and time.monotonic() - self.saved_at > 60 * cadence.every_minutes
        return by_steps or by_time

    def save(self) -> None:
        """Write a checkpoint of this moment and prune old ones."""
        clock = time.perf_counter()
        self._drain()
        if self.session.rank == 0:
            checkpoint.save(self.folder, self.card, self.session.state(), {"loop": self.loop.to_json()})
            checkpoint.prune(self.folder, self.settings.checkpoint.keep)
        self.loop.totals.saved += time.perf_counter() - clock
        self.saved_at = time.monotonic()


def schedule_of(settings: Settings, steps_per_epoch: int) -> schedule.Schedule:
    """The run's learning-rate schedule; `settings.optim.lr` must be resolved to a number."""
    peak = settings.optim.lr or 0.0
    return schedule.Schedule(
        settings.schedule.name,
        peak,
        total=settings.train.epochs * steps_per_epoch,
        warmup=round(settings.schedule.warmup_epochs * steps_per_epoch),
        floor=settings.schedule.min_lr_ratio * peak,
    )


def write_oof(folder: Path, data: FoldData, logits: NDArray[np.float32]) -> None:
    """`oof.npz` of a fold: ids, logits and targets of its validation images under the best weights so far."""
    partial = folder / "oof.partial.npz"
    np.savez(partial, ids=np.array(data.valid_ids), logits=logits, targets=data.valid_labels)
    partial.replace(folder / "oof.npz")


def evaluate(session: Session, loader: Loader, count: int, which: Which = "live") -> NDArray[np.float32]:
    """Logits float32 `[count, C]` of all images of a loader, in order."""
    parts = [
        session.logits(loaded.images, which)[loaded.weight > 0] for loaded in loader.epoch(np.arange(count), epoch=0)
    ]
    return np.concatenate(parts)
