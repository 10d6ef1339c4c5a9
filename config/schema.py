"""All settings together. With `data_sections` and `train_sections` the only home of names, defaults, ranges, meanings.

The descriptions are what `--help` prints. Reading files and command lines is in `load`. A new section is one class and
one line in `Settings`; whether a *name* (a model, a view) exists is decided where such names live.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from config.sections.augment import Augment
from config.sections.base import CHECK, Name, Section, UserPath
from config.sections.data import Data, Folds, Mining, Mix, Sampling, Teacher
from config.sections.ensemble import Ensemble
from config.sections.train import (
    LOSS_OPTIONS,
    OPTIMIZER_OPTIONS,
    Checkpoint,
    Drop,
    Ema,
    Loss,
    Optim,
    Progressive,
    Schedule,
    Stopping,
    Swa,
    Track,
    Train,
    Tta,
    Watchdog,
)
from config.sections.tune import Tune


class MemberKeys(Section):
    """What an entry of `members` has beside settings of its own."""

    name: Name = Field(description="What --member calls it.")
    weight: float = Field(default=1.0, ge=0, description="Its share in the ensemble, over the sum of all weights.")


class CrossFault(NamedTuple):
    """A setting whose value is allowed by itself but not beside another one (both as dotted names)."""

    path: str
    expected: str
    other: str


class Settings(Section):
    """All settings of a run. Built by `config.load`; valid whenever it exists.

    Raises pydantic's `ValidationError` with every fault at once; `config.load` turns it into a `ConfigError`.
    """

    model: str = Field(
        default="auto",
        min_length=1,
        description="The architecture, such as convnext_base_384 or a timm name; auto takes the best of a short table"
        " whose weights are at hand, which fits the memory and trains within auto_hours.",
    )
    auto_hours: float = Field(
        default=1.0,
        gt=0,
        description="Hours that model auto aims at, for all folds, by a rough estimate; nothing is stopped by it.",
    )
    weights: str = Field(
        default="pretrained",
        min_length=1,
        description="Where training starts: pretrained (from the Hugging Face hub), none, pip (the packages of the"
        " extra weights), hf:USER/NAME, a weights file (.safetensors, .pth, .ckpt, .npz), a hub folder, a checkpoint,"
        " or a run, of which each fold takes the best checkpoint of its own number.",
    )
    weights_ema: bool = Field(
        default=True, description="Of a file with averaged (EMA) and live weights take the averaged ones."
    )
    global_pool: Literal["avg", "max", "gem"] | None = Field(
        default=None,
        description="Global pooling of the last features: average, maximum, or the generalised mean with a"
        " learned power (convolutional networks and Swin); null keeps the model's own.",
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Decides every random number of the run.")
    out: UserPath = Field(default=Path("runs"), description="Folder that collects the runs.")
    name: Name | None = Field(
        default=None,
        description="Name of this run's folder; null derives one from model and time.",
    )
    resume: str = Field(
        default="auto",
        min_length=1,
        description="auto goes on with this engine's newest run of the same settings, never starts a new one, and the"
        " path of a run goes on with that one, whichever engine began it.",
    )
    resume_anyway: bool = Field(default=False, description="Go on with a run whose settings differ from these.")
    soup: bool = Field(
        default=False,
        description="At the end of a fold, average the best and the kept checkpoints as far as the score does not fall"
        " (greedy soup, Wortsman 2022), and keep that where it is better.",
    )
    profile: int = Field(
        default=0, ge=0, description="Updates of each fold to trace into its folder, after the first ones; 0 is off."
    )
    data: Data
    folds: Folds = Folds()
    augment: Augment = Augment()
    mix: Mix = Mix()
    teacher: Teacher = Teacher()
    train: Train = Train()
    progressive: Progressive = Progressive()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    sampling: Sampling = Sampling()
    mining: Mining = Mining()
    watchdog: Watchdog = Watchdog()
    loss: Loss = Loss()
    ema: Ema = Ema()
    swa: Swa = Swa()
    drop: Drop = Drop()
    stopping: Stopping = Stopping()
    checkpoint: Checkpoint = Checkpoint()
    tta: Tta = Tta()
    ensemble: Ensemble = Ensemble()
    tune: Tune = Tune()
    track: Track = Track()

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        details = []
        for fault in _cross_faults(self):
            error = PydanticCustomError(CHECK, "{expected}", {"expected": fault.expected, "other": fault.other})
            location, value = tuple(fault.path.split(".")), attrgetter(fault.path)(self)
            details.append(InitErrorDetails(type=error, loc=location, input=value))
        if details:
            raise ValidationError.from_exception_data("Settings", details)
        return self


def _cross_faults(settings: Settings) -> Iterator[CrossFault]:
    data, folds, epochs = settings.data, settings.folds, settings.train.epochs
    if data.id_column and data.target_column == data.id_column:
        yield CrossFault("data.target_column", "another column than data.id_column", "data.id_column")
    if data.streaming and data.cache_gb:
        yield CrossFault("data.cache_gb", "0 where data.streaming is true", "data.streaming")
    for path in ("mix.off_epochs", "augment.off_epochs", "schedule.warmup_epochs", "optim.freeze_epochs", "swa.epochs"):
        if attrgetter(path)(settings) > epochs:
            yield CrossFault(path, f"at most train.epochs ({epochs})", "train.epochs")
    batch, micro = settings.train.batch_size, settings.train.micro_batch
    if isinstance(batch, int) and isinstance(micro, int) and batch % micro:
        yield CrossFault("train.micro_batch", f"a divisor of train.batch_size ({batch})", "train.batch_size")
    if folds.train and not folds.file:
        yield from _fold_faults(folds.train, folds)
    if folds.groups and folds.strategy != "stratified_group":
        yield CrossFault("folds.groups", f"null where folds.strategy is {folds.strategy}", "folds.strategy")
    if folds.group_column != Folds().group_column and folds.strategy != "stratified_group":
        expected = f"{Folds().group_column} where folds.strategy is {folds.strategy}, which has no groups"
        yield CrossFault("folds.group_column", expected, "folds.strategy")
    if settings.stopping.robust_weight and (settings.soup or settings.swa.epochs):
        expected = "0 beside soup and swa.epochs, which are judged on clean images alone"
        yield CrossFault("stopping.robust_weight", expected, "soup" if settings.soup else "swa.epochs")
    yield from _teacher_faults(settings.teacher, folds)
    yield from _progressive_faults(settings.progressive, epochs)
    yield from _optimizer_faults(settings.optim)
    yield from _loss_faults(settings.loss)


def _teacher_faults(teacher: Teacher, folds: Folds) -> Iterator[CrossFault]:
    for key in ("file", "extra_file"):
        if getattr(teacher, key) and folds.strategy == "repeated":
            yield CrossFault(f"teacher.{key}", "null where folds.strategy is repeated", "folds.strategy")
    if teacher.extra_root and not teacher.extra_file:
        yield CrossFault("teacher.extra_file", "a file of answers to teacher.extra_root", "teacher.extra_root")
    if teacher.extra_file and not teacher.extra_root:
        yield CrossFault("teacher.extra_root", "the images that teacher.extra_file answers", "teacher.extra_file")


def _progressive_faults(progressive: Progressive, epochs: int) -> Iterator[CrossFault]:
    stages = len(progressive.sizes)
    if len(progressive.epochs) != stages:
        yield CrossFault("progressive.epochs", f"one number for each of {stages} sizes", "progressive.sizes")
    elif sum(progressive.epochs) >= epochs:
        yield CrossFault("progressive.epochs", f"less than train.epochs ({epochs}) together", "train.epochs")


def _optimizer_faults(optim: Optim) -> Iterator[CrossFault]:
    taken = optim.options()
    for key in sorted({key for options in OPTIMIZER_OPTIONS.values() for key in options} - taken.keys()):
        if getattr(optim, key) is not None:
            yield CrossFault(f"optim.{key}", f"null where optim.name is {optim.name}", "optim.name")
    if taken.get("nesterov") and taken["momentum"] == 0:
        yield CrossFault("optim.momentum", "more than 0 where optim.nesterov is not false", "optim.nesterov")


def _loss_faults(loss: Loss) -> Iterator[CrossFault]:
    for owner, options in LOSS_OPTIONS.items():
        for key in options:
            if owner != loss.name and getattr(loss, key) is not None:
                yield CrossFault(f"loss.{key}", f"null where loss.name is {loss.name}", "loss.name")
    if loss.class_weights_beta is not None and loss.class_weights != "effective_number":
        expected = "null where loss.class_weights is not effective_number"
        yield CrossFault("loss.class_weights_beta", expected, "loss.class_weights")


def _fold_faults(train: tuple[int, ...], folds: Folds) -> Iterator[CrossFault]:
    if folds.strategy == "holdout" and train != (0,):
        yield CrossFault("folds.train", "null or [0], as a holdout has one fold", "folds.strategy")
    if folds.strategy in ("stratified", "stratified_group") and max(train) >= folds.n_splits:
        yield CrossFault("folds.train", f"numbers below folds.n_splits ({folds.n_splits})", "folds.n_splits")
    if folds.strategy == "repeated" and max(train) >= folds.n_splits * folds.repeats:
        total = folds.n_splits * folds.repeats
        yield CrossFault("folds.train", f"numbers below folds.n_splits * folds.repeats ({total})", "folds.repeats")
