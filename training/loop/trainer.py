"""The only training loop. It does no arithmetic of a network and knows no framework: it feeds a session what `policy`
decided, follows the scores, and writes checkpoints from which training resumes exactly.
"""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.contract import Batch, Session, StepHyperparams, StepResult, TrainState, Weights, Which
from config.errors import Diverged
from config.schema import Settings
from config.text import counted
from data.loading.loader import Loaded, Loader
from models.card import Card
from training.distributed.ranks import Ranks, together
from training.distributed.resume import newest_checkpoint
from training.loop import averaging, checkpoint, evaluation
from training.loop.candidates import Candidates
from training.loop.fold_data import FoldData
from training.loop.profiling import Recorder
from training.loop.saver import Saver
from training.loop.state import Callbacks, Timings, Totals, TrainerState
from training.policy import mix, sampling, schedule, stopping
from training.policy.mining import Mining
from training.policy.resizing import ResizeSchedule, ResizeStage

_IN_FLIGHT = 4  # updates enqueued before the oldest one's result is read
_NAMED = 5  # files of a bad batch that are named


class _GoBack(Exception):
    """Too many updates in a row were not finite."""


class Trainer:
    """One fold's training: `Trainer(...).run()`. The parts that the loop needs at every step are fields."""

    def __init__(
        self,
        session: Session,
        data: FoldData,
        settings: Settings,
        card: Card,
        folder: Path,
        events: Callbacks,
        stop_requested: Callable[[], bool] = lambda: False,
    ):
        self.session, self.data, self.settings = session, data, settings
        self.card, self.folder, self.events = card, folder, events
        self.ranks = Ranks(session.group, stop_requested, self._overdue)
        self.resizing = ResizeSchedule(data.stages, len(self._pool(0)))
        peak, epochs = settings.optim.lr or 0.0, settings.train.epochs
        self.schedule = schedule.of(settings.schedule, peak, epochs, self.resizing.last_steps)
        self.loop, self.clock = TrainerState.start(settings), Timings()
        self.mining = Mining.of(settings.mining, len(data.train_labels))
        self.swa = averaging.Swa(start=settings.train.epochs - settings.swa.epochs)
        self.pending: deque[tuple[Any, NDArray[np.int64], NDArray[np.bool_]]] = deque()
        self.saved_at = time.monotonic()
        self.saver = Saver()
        self.named: set[Path] = set()  # unreadable images that were reported
        traced = settings.profile if self.ranks.leads else 0
        self.recorder = Recorder(traced, self.resizing.updates, session, folder, events.say)

    def run(self) -> TrainerState:
        """Train to the end or until the patience is used up; resumes from the newest whole checkpoint in `folder`.

        When it returns, everything is on disk.
        """
        with self.saver:
            first = 0
            for stage in self.data.stages:
                epochs, first = f"epochs {first + 1} to {first + stage.epochs}", first + stage.epochs
                steps, images = counted(self.resizing.steps(first - 1), "step"), counted(stage.batch, "image")
                self.events.say(f"{self.folder.name}, {epochs}: {steps} of {images} at {stage.size} pixels")
            if not self._resume():
                self.save()
            try:
                self._train()
            finally:
                self.recorder.close()
            if self.loop.epoch == self.settings.train.epochs or self.loop.stopping.stop:
                if self.loop.stopping.best_epoch < 0:
                    raise Diverged(
                        f"{self.folder}: no validation score of {counted(len(self.loop.history), 'epoch')} is finite; "
                        "lower optim.lr, or set train.precision fp32"
                    )
                self._candidates().compete(self.swa, self.settings.soup, self.loop.stopping, self.loop.epoch)
        return self.loop

    def _train(self) -> None:
        while self.loop.epoch < self.settings.train.epochs and not self.loop.stopping.stop:
            try:
                self._train_epoch()
            except _GoBack:
                self._go_back()
                continue
            if self.ranks.stop_requested():
                break
            self._close_epoch()

    def suspects(self) -> list[int]:
        """Positions of the training samples whose loss stays highest, hardest first: labels worth a look."""
        return self.mining.suspects().tolist() if self.settings.mining.cap > 0 else []

    def _resume(self) -> bool:
        self.saver.wait()
        path = newest_checkpoint(self.session.group, self.folder, self.events.say)
        if path is None:
            return False
        state, raw = together(self.session.group, lambda: checkpoint.load(path))
        self.session.load(state)
        self.loop = TrainerState.from_json(raw["loop"])
        arrays = checkpoint.load_arrays(path)
        self.swa.restore(arrays)
        if self.settings.mining.cap > 0:
            self.mining.losses, self.mining.fresh = arrays["mining.losses"].copy(), arrays["mining.fresh"].copy()
        if self.loop.epoch or self.loop.batch:
            self.events.say(f"going on from {path}: epoch {self.loop.epoch + 1}, batch {self.loop.batch}")
        self._adapt(checkpoint.config(path) or self.settings)
        return True

    def _adapt(self, before: Settings) -> None:
        """Fit the state of a checkpoint that was made with the settings `before` to those of now."""
        loop, settings, planned = self.loop, self.settings, before.train.epochs
        loop.stopping.patience, loop.stopping.min_delta = settings.stopping.patience, settings.stopping.min_delta
        fresh = TrainerState.start(settings).plateau
        loop.plateau.factor, loop.plateau.patience, loop.plateau.floor = fresh.factor, fresh.patience, fresh.floor
        if planned - before.swa.epochs != self.swa.start:
            self.swa = averaging.Swa(start=self.swa.start)
        if planned == settings.train.epochs:
            return
        best = self.folder / checkpoint.BEST
        if best.exists() and "averaged" in (state := checkpoint.read_state(best)):
            loop.stopping.best = state["scores"][loop.stopping.metric]
        if loop.epoch < settings.train.epochs and loop.history:
            now, last = self._hyperparams(loop.batch).lr, loop.history[-1]["lr"]
            epochs = counted(settings.train.epochs, "epoch")
            self.events.say(
                f"{self.folder.name}: {epochs} in place of {planned}; the learning rate follows the "
                f"{settings.schedule.name} schedule of {epochs}, from {now:.2e} in epoch {loop.epoch + 1} ({last:.2e} "
                f"at the end of epoch {loop.epoch})"
            )

    def _go_back(self) -> None:
        """Reload the last checkpoint and halve the learning rate."""
        rate, times = self.loop.rate_scale / 2, self.loop.went_back + 1
        self.pending.clear()
        self._resume()
        self.loop.rate_scale, self.loop.went_back, self.loop.skipped_in_a_row = rate, times, 0
        self.events.say(f"went back to the last checkpoint; the learning rate is {rate:g} of the planned one now")

    def _pool(self, epoch: int) -> NDArray[np.int64]:
        settings = self.settings
        return sampling.pool(self.data.train_labels, settings.sampling.kind, self.data.raise_to, settings.seed, epoch)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """The epoch's samples in order, full batches only; the samples left out differ from epoch to epoch."""
        drawn, seed = self._pool(epoch), self.settings.seed
        order = sampling.order(drawn, self.mining.draw(len(drawn), seed, epoch), seed, epoch)
        order = self._full_batches(order, epoch)
        if len(drawn) != len(np.unique(drawn)) or self.mining.share(epoch) > 0:
            names = self.card.class_names
            counts = np.bincount(self.data.train_labels[order], minlength=len(names))
            draws = "  ".join(f"{name}: {count}" for name, count in zip(names, counts, strict=True))
            self.events.say(f"epoch {epoch + 1} draws  {draws}")
        return order

    def _full_batches(self, order: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        if self.data.stream_order:
            return self.data.stream_order(order, self._stage(epoch).batch, self.settings.seed, epoch)
        return order[: self.resizing.steps(epoch) * self._stage(epoch).batch]

    def _stage(self, epoch: int) -> ResizeStage:
        return self.data.stages[self.resizing.number(epoch)]

    def _loader(self, epoch: int) -> Loader:
        return self.data.train[self.resizing.number(epoch)]

    def _train_epoch(self) -> None:
        loop, spent, cadence = self.loop, self.clock, self.settings.checkpoint.every_steps
        self.recorder.before_update()
        clock = time.perf_counter()
        order, first, size = self._order(loop.epoch), loop.batch, self._stage(loop.epoch).batch
        batches = self._loader(loop.epoch).epoch(order, loop.epoch, first_batch=first)
        for loaded in self.ranks.batches(batches, order, first, size):
            spent.waited += time.perf_counter() - clock
            clock = time.perf_counter()
            self._step(loaded)
            spent.computed += time.perf_counter() - clock
            due = cadence > 0 and loop.batch % cadence == 0
            if due or self.ranks.overdue():
                self.save()
            if self.ranks.stop_requested():
                self.save()
                return
            self.recorder.before_update()
            clock = time.perf_counter()
        self._drain()
        spent.computed += time.perf_counter() - clock

    def _step(self, loaded: Loaded) -> None:
        loop, data, settings, stage = self.loop, self.data, self.settings, self._stage(self.loop.epoch)
        update, epochs_left = self.resizing.update(loop.epoch, loop.batch), settings.train.epochs - loop.epoch
        plan = mix.plan(settings.mix, stage.batch, stage.size, settings.seed, update, epochs_left)
        trained = loaded.weight > 0
        if plan is not None:  # an image that is mixed with an unreadable one does not train either
            trained = trained & trained[plan.permutation]
        weights = mix.weights(plan, loaded.weight * data.train_weights[loaded.index]) * trained
        batch = Batch(loaded.images, data.train_targets[loaded.index], weights)
        self.pending.append(
            (self.session.train_step(batch, plan, self._hyperparams(loop.batch)), loaded.index, trained)
        )
        loop.totals.unreadable += int((loaded.weight == 0).sum())
        loop.batch += 1
        self.clock.images += len(loaded.index)
        if len(self.pending) > _IN_FLIGHT:
            self._read_one()
        mean = loop.totals.loss / max(loop.totals.samples, 1)
        done = self.resizing.update(loop.epoch, loop.batch)
        self.events.step(loop.epoch, done, self.resizing.updates, len(loaded.index), mean)

    def _hyperparams(self, batch: int) -> StepHyperparams:
        """What holds for a batch of the current epoch."""
        optim, loop = self.settings.optim, self.loop
        planned = schedule.learning_rate(self.schedule, self.resizing.position(loop.epoch, batch))
        decay = schedule.ema_decay(self.settings.ema.decay, self.resizing.update(loop.epoch, batch))
        rate = planned * loop.rate_scale * loop.plateau.scale
        return StepHyperparams(rate, optim.weight_decay, decay, optim.clip_norm, loop.epoch < optim.freeze_epochs)

    def _read_one(self) -> None:
        pending, index, trained = self.pending.popleft()
        result: StepResult = self.session.read(pending)
        if not result.finite:
            self._skipped(index)
            return
        self.loop.skipped_in_a_row = 0
        self.clock.device += result.seconds
        losses = result.losses[trained]
        self.loop.totals.loss += float(losses.sum(dtype=np.float64))
        self.loop.totals.samples += len(losses)
        if self.settings.mining.cap > 0:
            self.mining.observe(index[trained], losses)

    def _skipped(self, index: NDArray[np.int64]) -> None:
        """Count and report an update that was not finite; too many in a row go back, and at last stop the training."""
        loop, dog = self.loop, self.settings.watchdog
        loop.totals.skipped += 1
        loop.skipped_in_a_row += 1
        self.events.say(f"epoch {loop.epoch + 1}: an update was not finite and was skipped")
        if loop.skipped_in_a_row < dog.max_skipped:
            return
        if loop.went_back < dog.max_rollbacks:
            raise _GoBack
        files = ", ".join(str(self._loader(loop.epoch).paths[i]) for i in index[:_NAMED].tolist())
        raise Diverged(
            f"{dog.max_skipped} updates in a row were not finite, after going back {counted(loop.went_back, 'time')} "
            f"(epoch {loop.epoch + 1}, batch {loop.batch}, images {files}, ...); lower optim.lr, or set "
            "train.precision fp32"
        )

    def _drain(self) -> None:
        while self.pending:
            self._read_one()

    def _close_epoch(self) -> None:
        """Validate, follow the best, write the epoch's row and a checkpoint."""
        loop = self.loop
        which: Which = "ema" if self.settings.ema.decay > 0 else "live"
        labels, totals = self.data.valid_labels, loop.totals
        logits = evaluation.evaluate(self.session, self.data.valid, len(labels), which)
        row: dict[str, float] = {
            "epoch": loop.epoch + 1,
            "lr": self._hyperparams(self.resizing.steps(loop.epoch) - 1).lr,
            "train_loss": totals.loss / totals.samples if totals.samples else math.nan,  # all updates were skipped
            **evaluation.scores(logits, labels),
            "skipped": totals.skipped,
            "unreadable": totals.unreadable + len(logits) - int(evaluation.answered(logits).sum()),
        }
        if self.data.corrupted is not None:
            damaged = evaluation.evaluate(self.session, self.data.corrupted, len(labels), which)
            row |= {f"corrupted_{name}": value for name, value in evaluation.scores(damaged, labels).items()}
        loop.history.append(row)
        metric, share = loop.stopping.metric, self.settings.stopping.robust_weight  # share of the damaged images' score
        score = (1 - share) * row[metric] + share * row[f"corrupted_{metric}"] if share else row[metric]
        best = loop.stopping.update(score, loop.epoch)
        write_best = functools.partial(self._write_best, {"epoch": loop.epoch, "scores": row}, logits)
        self.mining.close_epoch()
        if loop.epoch >= self.swa.start:
            self.swa.observe(self.session.state().weights)
        if self.settings.schedule.name == "plateau":
            loop.plateau.update(row[loop.plateau.metric])
        self.events.epoch({**row, **self.clock.row()}, best)
        loaders = (*self.data.train, self.data.valid)
        faults = {path: fault for loader in loaders for path, fault in loader.bad.items() if path not in self.named}
        self.named |= faults.keys()
        for fault in self.ranks.all_lines(list(faults.values())):
            self.events.say(f"  left out: {fault}")
        if stopping.overfitting(loop.history):
            self.events.say("  overfitting: the validation loss rises while the training loss falls")
        loop.epoch, loop.batch, loop.totals, self.clock = loop.epoch + 1, 0, Totals(), Timings()
        ends = loop.epoch == self.settings.train.epochs or loop.stopping.stop
        if best or ends or loop.epoch % self.settings.checkpoint.every_epochs == 0:
            self.save(write_best if best else None)

    def _overdue(self) -> bool:
        minutes = self.settings.checkpoint.every_minutes
        return minutes > 0 and time.monotonic() - self.saved_at > 60 * minutes

    def save(self, before: Callable[[TrainState], None] | None = None) -> None:
        """Copy the state to the host and write it in the background as a checkpoint, after a call of `before`."""
        clock = time.perf_counter()
        self._drain()
        self.clock.computed += time.perf_counter() - clock
        clock = time.perf_counter()
        state = self.session.state()
        if self.ranks.leads:
            arrays = self.swa.arrays()
            if self.settings.mining.cap > 0:
                arrays["mining.losses"], arrays["mining.fresh"] = self.mining.losses.copy(), self.mining.fresh.copy()
            loop = {"loop": self.loop.to_json(), "config": self.settings.model_dump(mode="json")}

            def write() -> None:
                if before:
                    before(state)
                checkpoint.save(self.folder, self.card, state, loop, arrays)
                keep = self.settings.checkpoint.keep
                checkpoint.prune(self.folder, keep, ends=keep if self.settings.soup else 0)

            self.saver.save(write)
        self.clock.saved += time.perf_counter() - clock
        self.saved_at = time.monotonic()

    def _write_best(self, scores: dict[str, Any], logits: NDArray[np.float32], state: TrainState) -> None:
        chosen = state.ema if state.ema is not None else state.weights
        checkpoint.save_best(self.folder, self.card, chosen, scores)
        self._write_oof(logits)

    def soup(self) -> averaging.Judged:
        """The greedy soup of the best and the kept checkpoints, written as the checkpoint `soup`. Ends the training."""
        return self._candidates().soup(self.loop.stopping.metric)

    def _candidates(self) -> Candidates:
        group, say = self.session.group, self.events.say
        return Candidates(group, self.folder, self.card, self._judge, self._write_oof, self.saver, say)

    def _judge(self, weights: Weights, averaged: bool) -> averaging.Judged:
        weights = self.session.group.broadcast(weights)
        self.session.load(TrainState(weights), strict=False)
        if averaged:
            self.session.recalibrate(self._calibration_images())
            weights = self.session.state().weights
        logits = evaluation.evaluate(self.session, self.data.valid, len(self.data.valid_labels))
        return averaging.Judged(weights, logits, evaluation.scores(logits, self.data.valid_labels))

    def _write_oof(self, logits: NDArray[np.float32]) -> None:
        evaluation.write_oof(self.folder, self.data.valid_ids, logits, self.data.valid_labels)

    def _calibration_images(self) -> Iterator[NDArray[np.uint8]]:
        """Full batches of training images as the last epoch augments them."""
        epoch = self.settings.train.epochs - 1
        order = sampling.order(self._pool(epoch), np.zeros(0, np.int64), self.settings.seed, epoch)
        for loaded in self._loader(epoch).epoch(self._full_batches(order, epoch), epoch):
            yield loaded.images
