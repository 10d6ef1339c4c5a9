"""Progressive resizing (Howard 2018; Tan and Le 2021): small images in large batches first, the full size at the end.

Size, batch and number of each update are pure functions of the epoch and the batch in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from config.errors import ConfigError
from config.sections.train import Progressive, Train
from models.registry import ModelSpec

_MULTIPLE = 16  # of the images in a raised batch; fast on the tensor cores and for MLX's depthwise gradients


@dataclass(frozen=True)
class ResizeStage:
    """`epochs` epochs of square images of `size` pixels in batches of `batch`."""

    epochs: int
    size: int
    batch: int


def check(progressive: Progressive, spec: ModelSpec) -> None:
    """`ConfigError` for a model that takes one size only, and for sizes that are not smaller than its own."""
    full = spec.preprocessing.size
    if progressive.sizes and spec.fixed_input_size:
        raise ConfigError(
            f"progressive.sizes: model {spec.name} takes images of one size only ({full}); leave it out, or choose a "
            "convolutional network"
        )
    if any(size >= full for size in progressive.sizes):
        raise ConfigError(
            f"progressive.sizes: {max(progressive.sizes)} is not below data.image_size ({full}); give smaller sizes"
        )


def stages(progressive: Progressive, train: Train, spec: ModelSpec, batch: int, images: int) -> tuple[ResizeStage, ...]:
    """The stages of a training of `images` images, the last at the model's own size with batches of `batch`.

    A smaller size takes as many more images at a time as it has fewer pixels, in multiples of the micro-batch or of
    16.
    """
    full = spec.preprocessing.size
    unit = train.micro_batch if isinstance(train.micro_batch, int) else _MULTIPLE
    raised = [
        int(batch * (full / size) ** 2) // unit * unit if progressive.raise_batch else batch
        for size in progressive.sizes
    ]
    smaller = [
        ResizeStage(epochs, size, min(max(more, batch), images))
        for epochs, size, more in zip(progressive.epochs, progressive.sizes, raised, strict=True)
    ]
    return (*smaller, ResizeStage(train.epochs - sum(progressive.epochs), full, batch))


@dataclass(frozen=True)
class ResizeSchedule:
    """Where each update of a training stands. `samples` are drawn an epoch; what fills no batch is left out."""

    stages: Sequence[ResizeStage]
    samples: int

    def number(self, epoch: int) -> int:
        """The stage that an epoch belongs to, from 0; epochs past the end belong to the last."""
        for number, stage in enumerate(self.stages):
            if epoch < stage.epochs:
                return number
            epoch -= stage.epochs
        return len(self.stages) - 1

    def steps(self, epoch: int) -> int:
        """Updates in an epoch."""
        return self.samples // self.stages[self.number(epoch)].batch

    def update(self, epoch: int, batch: int) -> int:
        """The number of an update among all of the training, from 0."""
        done, left = batch, epoch
        for stage in self.stages:
            done += min(left, stage.epochs) * (self.samples // stage.batch)
            left -= min(left, stage.epochs)
        return done

    @property
    def updates(self) -> int:
        """All updates of the training."""
        return self.update(sum(stage.epochs for stage in self.stages), 0)

    @property
    def last_steps(self) -> int:
        """Updates in an epoch of the last stage: what schedules count in."""
        return self.samples // self.stages[-1].batch

    def position(self, epoch: int, batch: int) -> float:
        """Where a schedule stands, in steps of the last stage: each epoch is as long as any other."""
        return epoch * self.last_steps + batch * (self.last_steps / self.steps(epoch))
