"""Every setting: its name, type, default, range and meaning. The only home of defaults.

The descriptions are what `--help` prints. Reading files and command lines is in `load`. A new section is one class and
one line in `Settings`; whether a *name* (a model, a view) exists is decided where such names live.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

CHECK = "tandem_check"  # the error type whose message is the expectation itself; its ctx may name the `other` setting


def _distinct(values: Items) -> Items:
    if len(set(values)) < len(values):
        raise PydanticCustomError(CHECK, "each entry once only")
    return values


Items = TypeVar("Items", bound=tuple[Hashable, ...])
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
FoldNumber = Annotated[int, Field(ge=0)]
Column = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """Base of all sections: immutable, closed to unknown keys, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Section):
    """The images and how they reach the model."""

    root: Path = Field(
        description="The data set: a folder with train.csv and its images, or a folder of class folders."
    )
    image_size: int | None = Field(
        default=None, ge=16, le=4096, description="Side of the square input in pixels; null takes the model's own."
    )
    id_column: Column = Field(default="ID", description="Column of train.csv that names the image file.")
    target_column: Column = Field(default="target", description="Column of train.csv that holds the class.")
    workers: int = Field(default=0, ge=0, le=1024, description="Loader threads; 0 means one for each core.")
    fit: Literal["crop", "squash", "letterbox"] | None = Field(
        default=None,
        description="How a picture that is not square becomes square: crop cuts the centre, squash ignores the aspect"
        " ratio, letterbox pads and loses nothing; null takes the model's own.",
    )
    mean: tuple[float, float, float] | None = Field(
        default=None, description="Mean of R, G and B in the range 0 to 1; null takes the model's own."
    )
    std: tuple[Positive, Positive, Positive] | None = Field(
        default=None, description="Standard deviation of R, G and B in the range 0 to 1; null takes the model's own."
    )
    pixel_limit: int = Field(
        default=178_956_970, ge=1, description="Most pixels an image may have before it is refused as unreadable."
    )


class Folds(Section):
    """Which images train a model and which ones judge it."""

    kind: Literal["holdout", "stratified"] = Field(
        default="holdout",
        description="holdout sets one stratified share aside; stratified makes `count` folds and a model for each.",
    )
    count: int = Field(default=5, ge=2, le=1000, description="Number of folds (stratified).")
    val_fraction: float = Field(default=0.2, gt=0, lt=1, description="Share of the images set aside (holdout).")
    train: Annotated[tuple[FoldNumber, ...], Field(min_length=1), AfterValidator(_distinct)] | None = Field(
        default=None, description="Numbers of the folds to train now, such as [0, 2]; null trains them all."
    )
    file: Path | None = Field(default=None, description="An existing folds.csv to use in place of drawing folds.")


class Augment(Section):
    """Random changes to the training images."""

    level: Literal["none", "minimal", "moderate", "hard"] = Field(
        default="moderate", description="How strongly the training images are changed."
    )
    hflip: bool = Field(default=True, description="Mirror left to right half of the time; not for text or digits.")
    vflip: bool = Field(default=False, description="Mirror top to bottom half of the time.")


class Mix(Section):
    """Blending pairs of images and their targets: Mixup (Zhang 2018) and CutMix (Yun 2019)."""

    mixup: float = Field(default=0.0, ge=0, description="Alpha of Mixup's Beta distribution; 0 is off.")
    cutmix: float = Field(default=0.0, ge=0, description="Alpha of CutMix's Beta distribution; 0 is off.")
    prob: Probability = Field(default=1.0, description="Probability that a batch is mixed at all.")
    switch_prob: Probability = Field(default=0.5, description="Probability of CutMix where both are on.")
    off_epochs: int = Field(default=0, ge=0, description="Number of last epochs without mixing.")


class Train(Section):
    """Length, batch size and arithmetic of the training."""

    epochs: int = Field(default=20, ge=1, description="Passes over the training images.")
    batch_size: int | None = Field(default=None, ge=1, description="Images in an update; null takes the model's own.")
    val_batch_size: int | None = Field(
        default=None, ge=1, description="Images in an evaluation batch; null takes batch_size."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="Arithmetic of the step; auto is bf16 where the device is fast at it, else fp32."
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="Compile the step; auto does where it pays, off is slower but starts at once."
    )


class Optim(Section):
    """The optimizer; both engines follow torch.optim's definitions."""

    name: Literal["adamw", "sgd"] = Field(default="adamw", description="The optimizer.")
    lr: float | None = Field(default=None, gt=0, description="Peak learning rate; null takes the model's own.")
    weight_decay: float = Field(default=0.05, ge=0, description="Weight decay; norms and biases have none.")
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.999), description="Decays of the two moments (adamw).")
    eps: float = Field(default=1e-8, gt=0, description="Added to the denominator (adamw).")
    momentum: Fraction = Field(default=0.9, description="Momentum (sgd).")
    nesterov: bool = Field(default=True, description="Nesterov's form of momentum (sgd).")
    clip_norm: float = Field(default=1.0, ge=0, description="Largest gradient norm; 0 clips nothing.")


class Schedule(Section):
    """The learning rate over time, a function of the step."""

    name: Literal["cosine", "constant"] = Field(default="cosine", description="Its course after the warm-up.")
    warmup_epochs: float = Field(default=1.0, ge=0, description="Epochs of linear rise to the peak; 0 starts there.")
    min_lr_ratio: Probability = Field(default=0.01, description="Learning rate at the end as a share of the peak.")


# The options of each loss with their values where the settings leave them null.
LOSS_OPTIONS: dict[str, dict[str, float]] = {
    "cross_entropy": {},
    "focal": {"gamma": 2.0, "alpha": 1.0},
    "bi_tempered": {"t1": 0.8, "t2": 1.2},
    "bce": {},
    "poly1": {"epsilon": 2.0},
    "asymmetric": {"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05},
}


class Loss(Section):
    """What is minimised."""

    name: Literal["cross_entropy", "focal", "bi_tempered", "bce", "poly1", "asymmetric"] = Field(
        default="cross_entropy", description="The loss; an option of another one than this must stay null."
    )
    label_smoothing: Fraction = Field(default=0.1, description="Share of each target spread over all classes.")
    class_weights: Literal["none", "balanced", "effective_number"] | Annotated[
        tuple[Positive, ...], Field(min_length=2)
    ] = Field(
        default="none",
        description="Factors of the classes, against imbalance: balanced is in inverse proportion to their training"
        " images, effective_number is milder for large classes (Cui 2019), a list is in the order of the class names.",
    )
    class_weights_beta: Fraction | None = Field(
        default=None, description="effective_number: nearer to 1 is nearer to balanced; null takes 0.999."
    )
    gamma: float | None = Field(default=None, ge=0, description="focal: how little easy images count; null takes 2.")
    alpha: Positive | None = Field(default=None, description="focal: factor of the whole loss; null takes 1.")
    t1: Probability | None = Field(
        default=None, description="bi_tempered: below 1 bounds the loss of an image; null takes 0.8."
    )
    t2: float | None = Field(
        default=None, ge=1, le=5, description="bi_tempered: above 1 thickens the softmax's tail; null takes 1.2."
    )
    epsilon: float | None = Field(
        default=None, ge=-1, description="poly1: what is added to the first coefficient, 1; null takes 2."
    )
    gamma_neg: float | None = Field(
        default=None, ge=0, description="asymmetric: how little an easy absent class counts; null takes 4."
    )
    gamma_pos: float | None = Field(
        default=None, ge=0, description="asymmetric: how little an easy present class counts; null takes 1."
    )
    clip: Fraction | None = Field(
        default=None, description="asymmetric: probability below which an absent class costs nothing; null takes 0.05."
    )

    def options(self) -> dict[str, float]:
        """The chosen loss's own options, resolved."""
        own = LOSS_OPTIONS[self.name]
        return {key: value if getattr(self, key) is None else getattr(self, key) for key, value in own.items()}


class Ema(Section):
    """An exponential moving average of the weights, evaluated in their place."""

    decay: Fraction = Field(default=0.0, description="Share of the average kept at each step, such as 0.999; 0 is off.")


class Drop(Section):
    """Parts of the network left out at random in training."""

    rate: Fraction = Field(default=0.0, description="Dropout before the classifier.")
    path: Fraction = Field(default=0.0, description="Stochastic depth at the last block, rising linearly to it.")


class Stopping(Section):
    """What makes an epoch the best, and when to give up waiting for a better one."""

    metric: Literal["macro_f1", "accuracy", "log_loss"] = Field(
        default="macro_f1", description="The validation metric that picks the best checkpoint."
    )
    patience: int = Field(default=0, ge=0, description="Epochs without improvement before stopping; 0 never stops.")
    min_delta: float = Field(default=0.0, ge=0, description="Smallest change that counts as an improvement.")


class Checkpoint(Section):
    """When the whole state is saved, and how many of these are kept; the best weights are kept apart."""

    every_epochs: int = Field(default=1, ge=1, description="Epochs between checkpoints.")
    every_steps: int = Field(default=0, ge=0, description="Steps of an epoch between checkpoints; 0 is off.")
    every_minutes: float = Field(default=10.0, ge=0, description="Minutes between checkpoints; 0 is off.")
    keep: int = Field(default=3, ge=1, description="Number of newest checkpoints to keep.")


class Tta(Section):
    """Test-time augmentation: views of an image whose answers are averaged."""

    views: Annotated[tuple[Column, ...], Field(min_length=1), AfterValidator(_distinct)] = Field(
        default=("original",), description="Names of the views, such as [original, hflip]."
    )


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
        default="convnext_base", min_length=1, description="The architecture, such as convnext_base_384 or a timm name."
    )
    weights: str = Field(
        default="pretrained",
        min_length=1,
        description="Where training starts: pretrained (from the Hugging Face hub), none, or a .safetensors file.",
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Decides every random number of the run.")
    out: Path = Field(default=Path("runs"), description="Folder that collects the runs.")
    name: str | None = Field(
        default=None,
        pattern=r"^\w[\w.+-]*$",
        max_length=128,
        description="Name of this run's folder (letters, digits, . _ + -); null derives one from model and time.",
    )
    resume: str = Field(
        default="auto",
        min_length=1,
        description="auto goes on with this engine's newest run of the same settings, never starts a new one, and the"
        " path of a run goes on with that one, whichever engine began it.",
    )
    resume_anyway: bool = Field(default=False, description="Go on with a run whose settings differ from these.")
    data: Data
    folds: Folds = Folds()
    augment: Augment = Augment()
    mix: Mix = Mix()
    train: Train = Train()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    loss: Loss = Loss()
    ema: Ema = Ema()
    drop: Drop = Drop()
    stopping: Stopping = Stopping()
    checkpoint: Checkpoint = Checkpoint()
    tta: Tta = Tta()

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        details = [_detail(self, fault) for fault in _cross_faults(self)]
        if details:
            raise ValidationError.from_exception_data("Settings", details)
        return self


def _cross_faults(settings: Settings) -> Iterator[CrossFault]:
    data, folds, epochs = settings.data, settings.folds, settings.train.epochs
    if data.target_column == data.id_column:
        yield CrossFault("data.target_column", "another column than data.id_column", "data.id_column")
    if settings.mix.off_epochs > epochs:
        yield CrossFault("mix.off_epochs", f"at most train.epochs ({epochs})", "train.epochs")
    if settings.schedule.warmup_epochs > epochs:
        yield CrossFault("schedule.warmup_epochs", f"at most train.epochs ({epochs})", "train.epochs")
    if settings.optim.name == "sgd" and settings.optim.nesterov and settings.optim.momentum == 0:
        yield CrossFault("optim.nesterov", "false where optim.momentum is 0", "optim.momentum")
    if folds.train and not folds.file:
        yield from _fold_faults(folds.train, folds)
    yield from _loss_faults(settings.loss)


def _loss_faults(loss: Loss) -> Iterator[CrossFault]:
    for owner, options in LOSS_OPTIONS.items():
        for key in options:
            if owner != loss.name and getattr(loss, key) is not None:
                yield CrossFault(f"loss.{key}", f"null where loss.name is {loss.name}", "loss.name")
    if loss.class_weights_beta is not None and loss.class_weights != "effective_number":
        expected = "null where loss.class_weights is not effective_number"
        yield CrossFault("loss.class_weights_beta", expected, "loss.class_weights")


def _fold_faults(train: tuple[int, ...], folds: Folds) -> Iterator[CrossFault]:
    if folds.kind == "holdout" and train != (0,):
        yield CrossFault("folds.train", "null or [0], as a holdout has one fold", "folds.kind")
    if folds.kind == "stratified" and max(train) >= folds.count:
        yield CrossFault("folds.train", f"numbers below folds.count ({folds.count})", "folds.count")


def _detail(settings: Settings, fault: CrossFault) -> InitErrorDetails:
    value: Any = settings
    for key in fault.path.split("."):
        value = getattr(value, key)
    error = PydanticCustomError(CHECK, "{expected}", {"expected": fault.expected, "other": fault.other})
    return InitErrorDetails(type=error, loc=tuple(fault.path.split(".")), input=value)
