"""The state of a fold's training that a checkpoint holds beside the session's, its timings, and its callbacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from config.schema import Settings
from training.policy.plateau import Plateau
from training.policy.stopping import Stopping


@dataclass
class Totals:
    """Running sums of one epoch, saved in the middle of it."""

    loss: float = 0.0
    samples: int = 0
    skipped: int = 0
    unreadable: int = 0


@dataclass
class Timings:
    """Seconds that an epoch took, and its training images. Checkpoints do not hold them and no decision depends on
    them: after a resume in the middle of an epoch they are those of the rest.

    `waited` is the host's time without a batch, `device` the seconds of updates as far as the engine can tell: a device
    that works on earlier updates meanwhile does not wait.
    """

    waited: float = 0.0
    computed: float = 0.0
    saved: float = 0.0
    device: float = 0.0
    images: int = 0

    def row(self) -> dict[str, float]:
        """Its columns of `history.csv`."""
        spent = max(self.waited + self.computed + self.saved, 1e-9)
        saving = self.saved / spent
        waiting = min(self.waited, max(0.0, spent - self.saved - self.device)) / spent
        return {
            "seconds": round(spent, 3),
            "images_per_second": round(self.images / spent, 1),
            "waiting": round(waiting, 3),
            "computing": round(1 - waiting - saving, 3),
            "saving": round(saving, 3),
        }


@dataclass
class TrainerState:
    """`epoch` and `batch` are the next ones to train; `rate_scale` multiplies the learning rate after going back."""

    stopping: Stopping
    plateau: Plateau
    epoch: int = 0
    batch: int = 0
    skipped_in_a_row: int = 0
    went_back: int = 0
    rate_scale: float = 1.0
    totals: Totals = field(default_factory=Totals)
    history: list[dict[str, float]] = field(default_factory=list)

    @staticmethod
    def start(settings: Settings) -> TrainerState:
        """The beginning of a fold."""
        stopping, schedule = settings.stopping, settings.schedule
        return TrainerState(
            Stopping(stopping.metric, stopping.patience, stopping.min_delta),
            Plateau(stopping.metric, schedule.plateau_factor, schedule.plateau_patience, floor=schedule.min_lr_ratio),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def from_json(raw: dict[str, Any]) -> TrainerState:
        """The inverse of `to_json`."""
        parts = {"stopping": Stopping, "plateau": Plateau, "totals": Totals}
        return TrainerState(**{key: parts[key](**value) if key in parts else value for key, value in raw.items()})


@dataclass(frozen=True)
class Callbacks:
    """Called by the loop, for a progress bar, a log, or a tracker. They do not change the run.

    `step` gets the epoch from 0, the updates done and those of the whole training, the images of this one, and the
    epoch's mean loss so far; `epoch` its row of `history.csv` and whether it is the best.
    """

    step: Callable[[int, int, int, int, float], None] = lambda *_: None
    epoch: Callable[[dict[str, float], bool], None] = lambda *_: None
    say: Callable[[str], None] = lambda *_: None
