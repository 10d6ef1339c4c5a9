"""The settings about the training: length, arithmetic, optimizer, schedule, loss, averages, checkpoints, views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from config.sections import declared
from config.sections.base import Column, Count, Fraction, Positive, Probability, Section, distinct
from config.text import plain

Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
# The options of each optimizer with their values where the settings leave them null. Muon's betas and eps are for the
# parameters that it hands to AdamW.
OPTIMIZER_OPTIONS: dict[str, dict[str, Any]] = {
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8},
    "sgd": {"momentum": 0.9, "nesterov": True},
    "lion": {"betas": (0.9, 0.99)},
    "muon": {"betas": (0.9, 0.95), "eps": 1e-8, "momentum": 0.95, "nesterov": True},
}
# A model's own rate is AdamW's. Muon's steps are made as large; a sign is several times larger than AdamW's step
# (Chen et al. 2023 advise a third to a tenth); SGD's usual fine-tuning rate is 0.01.
OPTIMIZER_RATES = {
    "adamw": 1.0,
    "sgd": 100.0,
    "lion": 0.2,
    "muon": 1.0,
}
# The options of each loss with their values where the settings leave them null.
LOSS_OPTIONS: dict[str, dict[str, float]] = {
    "cross_entropy": {},
    "focal": {"gamma": 2.0, "alpha": 1.0},
    "bi_tempered": {"t1": 0.8, "t2": 1.2},
    "bce": {},
    "poly1": {"epsilon": 2.0},
    "asymmetric": {"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05},
}
if TYPE_CHECKING:
    LossName = str
    OptimizerName = str
    ScheduleName = str
else:
    LossName = Literal[tuple(LOSS_OPTIONS)]
    OptimizerName = Literal[tuple(OPTIMIZER_OPTIONS)]
    ScheduleName = Literal[declared.keys("training/policy/schedule.py", "SHAPES")]


class Train(Section):
    """Length, batch size and arithmetic of the training."""

    epochs: int = Field(default=20, ge=1, description="Passes over the training images.")
    batch_size: Count | Literal["auto"] | None = Field(
        default=None,
        description="Images in an update; null takes the model's own, auto too, with as many of them at a time as fit"
        " (micro_batch).",
    )
    val_batch_size: int | None = Field(
        default=None, ge=1, description="Images in an evaluation batch; null takes batch_size."
    )
    micro_batch: Count | Literal["auto"] | None = Field(
        default=None,
        description="Images that pass the network at a time, their gradients added up to those of the whole batch; less"
        " memory, and BatchNorm sees this many. A divisor of batch_size; auto tries what fits, null is all at once."
        " It is halved where the memory runs out.",
    )
    checkpoint_gradients: bool = Field(
        default=False,
        description="Keep only the input of each block and compute the block again for its gradient: less memory, about"
        " a third more time, the same numbers.",
    )
    precision: Precision = Field(
        default="auto",
        description="Arithmetic of the step; auto is bf16 where the device is fast at it, else fp32. tf32 needs an"
        " NVIDIA GPU or an M5 (macOS 26.2); fp16 with a scaled loss is torch's alone.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="Compile the step; auto does where it pays, off is slower but starts at once."
    )
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = Field(
        default="default",
        description="torch.compile's mode: reduce-overhead replays CUDA graphs, max-autotune also tries out kernels"
        " (slow to start). torch's alone.",
    )
    deterministic: bool = Field(
        default=False,
        description="The same numbers each time on an NVIDIA GPU too, by slower algorithms; an operation that has none"
        " is an error. The CPU needs no such setting. torch's alone.",
    )
    sync_batch_norm: bool = Field(
        default=False,
        description="BatchNorm takes the statistics of the images of all processes; else each process its own, which is"
        " faster. For several NVIDIA GPUs. torch's alone.",
    )
    fsdp: bool = Field(
        default=False,
        description="Several processes share out weights, optimizer and EMA (FSDP2), for networks that do not fit into"
        " one GPU's memory; slower where they do. torch's alone.",
    )


class Progressive(Section):
    """Progressive resizing: smaller images in the first epochs, data.image_size in the rest."""

    sizes: tuple[Annotated[int, Field(ge=16, le=4096)], ...] = Field(
        default=(),
        description="Sides in pixels of the first stages, such as [128, 176]; an empty list is off. For networks that"
        " take any size (convolutional ones).",
    )
    epochs: tuple[Count, ...] = Field(
        default=(), description="Epochs of each of these stages; what train.epochs has left is at the full size."
    )
    raise_batch: bool = Field(
        default=True,
        description="Take as many more images at a time as a smaller stage has fewer pixels; the learning rate stays.",
    )


def _optimizer_option(key: str, meaning: str, **bounds: Any) -> Any:
    defaults = [f"{plain(options[key])} ({name})" for name, options in OPTIMIZER_OPTIONS.items() if key in options]
    return Field(default=None, description=f"{meaning}; null takes {', '.join(defaults)}.", **bounds)


class Optim(Section):
    """The optimizer, the rates of the network's parts, and the limits of the gradients; the same on both engines."""

    name: OptimizerName = Field(
        default="adamw",
        description="The optimizer: AdamW and SGD as torch.optim's, Lion (Chen 2023), Muon (Jordan 2024: matrices and"
        " kernels are orthogonalised, AdamW moves the rest). An option that it does not have must stay null.",
    )
    lr: float | None = Field(
        default=None, gt=0, description="Peak learning rate; null takes the model's own, suited to the optimizer."
    )
    weight_decay: float = Field(default=0.05, ge=0, description="Weight decay; norms, biases and tables have none.")
    betas: tuple[Fraction, Fraction] | None = _optimizer_option("betas", "Decays of the two moments")
    eps: float | None = _optimizer_option("eps", "Added to the denominator", gt=0)
    momentum: Fraction | None = _optimizer_option("momentum", "Momentum")
    nesterov: bool | None = _optimizer_option("nesterov", "Nesterov's form of momentum")
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Factor of the learning rate from each layer to the one before it, such as 0.75 (timm's layers);"
        " 1 gives all the same.",
    )
    head_lr_mult: float = Field(default=1.0, gt=0, description="Factor of the classifier's learning rate.")
    head_init: Literal["auto", "probe", "random"] = Field(
        default="auto",
        description="How the new classifier of a pretrained network is initialised: probe fits a logistic regression on"
        " the network's features of the training images where these are few (at most 5,000, and 250,000 images times"
        " classes), random draws small random weights; auto is probe where BatchNorm's statistics are fixed.",
    )
    batch_norm: Literal["auto", "batch", "fixed"] = Field(
        default="auto",
        description="Statistics that BatchNorm uses in training: batch takes each batch's own, fixed keeps those of the"
        " initial weights; auto is fixed where pretrained weights meet few images (as head_init) of at most half the"
        " input's side, else batch.",
    )
    freeze_epochs: int = Field(
        default=0, ge=0, description="First epochs in which only the classifier is trained; they are faster."
    )
    clip_norm: float = Field(default=1.0, ge=0, description="Largest norm of all gradients together; 0 is no limit.")
    clip_value: float = Field(default=0.0, ge=0, description="Largest absolute gradient; 0 is no limit.")
    clip_factor: float = Field(
        default=0.0,
        ge=0,
        description="Largest norm of a unit's gradient as a share of its weights' norm, such as 0.01 (adaptive"
        " clipping, Brock 2021; the classifier is spared); 0 is no limit.",
    )

    def options(self) -> dict[str, Any]:
        """The chosen optimizer's own options, with their defaults where they are null."""
        return self.with_defaults(OPTIMIZER_OPTIONS[self.name])


class Schedule(Section):
    """The learning rate over time, a function of the step."""

    name: ScheduleName = Field(default="cosine", description="Its course after the warm-up.")
    warmup_epochs: float = Field(default=1.0, ge=0, description="Epochs of linear rise to the peak; 0 starts there.")
    min_lr_ratio: Probability = Field(default=0.01, description="Learning rate at the end as a share of the peak.")
    t_0: float = Field(default=10.0, gt=0, description="Epochs until the first warm restart (cosine_restarts).")
    t_mult: int = Field(default=2, ge=1, description="How many times longer each next period is (cosine_restarts).")
    decay_share: float = Field(default=0.2, gt=0, le=1, description="Last share of the steps that falls (wsd).")
    step_epochs: float = Field(default=10.0, gt=0, description="Epochs between two falls (step).")
    gamma: float = Field(default=0.1, gt=0, le=1, description="Factor of each fall (step).")
    plateau_factor: float = Field(default=0.1, gt=0, lt=1, description="Factor of each fall (plateau).")
    plateau_patience: int = Field(default=5, ge=0, description="Epochs without improvement before a fall (plateau).")


class Watchdog(Section):
    """What happens when updates are not finite: skip, then go back at half the rate, then stop."""

    max_skipped: int = Field(default=10, ge=1, description="Skipped updates in a row before going back.")
    max_rollbacks: int = Field(default=3, ge=0, description="Times to go back to the last checkpoint before stopping.")


CLASS_WEIGHTS_BETA = 0.999


def _option(loss: str, key: str, meaning: str, **bounds: Any) -> Any:
    return Field(default=None, description=f"{loss}: {meaning}; null takes {LOSS_OPTIONS[loss][key]:g}.", **bounds)


class Loss(Section):
    """What is minimised."""

    name: LossName = Field(
        default="cross_entropy", description="The loss; an option of another one than this must stay null."
    )
    label_smoothing: Fraction = Field(default=0.1, description="Share of each target spread over all classes.")
    class_weights: Literal["none", "balanced", "effective_number"] | tuple[Positive, ...] = Field(
        default="none",
        description="Factors of the classes, against imbalance: balanced is in inverse proportion to their training"
        " images, effective_number is milder for large classes (Cui 2019), a list is in the order of the class names.",
    )
    class_weights_beta: Fraction | None = Field(
        default=None,
        description=f"effective_number: nearer to 1 is nearer to balanced; null takes {CLASS_WEIGHTS_BETA:g}.",
    )
    gamma: float | None = _option("focal", "gamma", "the larger, the less do easy images count", ge=0)
    alpha: float | None = _option("focal", "alpha", "factor of the whole loss", gt=0)
    t1: float | None = _option("bi_tempered", "t1", "below 1 bounds what one image can cost", ge=0, le=1)
    t2: float | None = _option("bi_tempered", "t2", "above 1 thickens the softmax's tail", ge=1, le=5)
    epsilon: float | None = _option("poly1", "epsilon", "added to the first coefficient, which is 1", ge=-1)
    gamma_neg: float | None = _option(
        "asymmetric", "gamma_neg", "the larger, the less do easy absent classes count", ge=0
    )
    gamma_pos: float | None = _option("asymmetric", "gamma_pos", "the same for the present class", ge=0)
    clip: float | None = _option("asymmetric", "clip", "probability up to which absent classes are free", ge=0, lt=1)

    def options(self) -> dict[str, float]:
        """The chosen loss's own options, with their defaults where they are null."""
        return self.with_defaults(LOSS_OPTIONS[self.name])


class Ema(Section):
    """An exponential moving average of the weights, evaluated in their place."""

    decay: Fraction = Field(default=0.0, description="Share of the average kept at each step, such as 0.999; 0 is off.")


class Swa(Section):
    """Stochastic weight averaging (Izmailov 2018): the mean of the last epochs' weights, for where it is better."""

    epochs: int = Field(default=0, ge=0, description="Last epochs whose weights are averaged at their ends; 0 is off.")


class Drop(Section):
    """Parts of the network left out at random in training."""

    rate: Fraction = Field(default=0.0, description="Dropout before the classifier.")
    path: Fraction = Field(default=0.0, description="Stochastic depth at the last block, rising linearly to it.")


class Stopping(Section):
    """What makes an epoch the best, and when to give up waiting for a better one."""

    metric: Literal["macro_f1", "accuracy", "log_loss"] = Field(
        default="macro_f1", description="The validation metric that picks the best checkpoint."
    )
    robust_weight: Probability = Field(
        default=0.0,
        description="Share of the metric that is taken on damaged copies of the validation images (skewed, turned,"
        " blurred, noisy, shaded, as pages are), scored beside the clean ones in every epoch; 0 does without them.",
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

    views: Annotated[tuple[Column, ...], Field(min_length=1), AfterValidator(distinct)] = Field(
        default=("original",), description="Names of the views, such as [original, hflip]."
    )


class Track(Section):
    """Who is told of a run besides its own files (`history.csv`, `history.jsonl`); each needs an extra of its name."""

    tensorboard: bool = Field(default=False, description="TensorBoard events in the folder of each fold.")
    wandb: bool = Field(
        default=False,
        description="Weights & Biases: online where you are logged in, else offline in the run, for `wandb sync`.",
    )
    mlflow: bool = Field(
        default=False, description="MLflow: where MLFLOW_TRACKING_URI says, else mlflow.db in the folder of the runs."
    )
    project: str = Field(
        default="tandem", min_length=1, description="Project (Weights & Biases) or experiment (MLflow) of the runs."
    )
