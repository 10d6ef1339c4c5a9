"""TensorBoard, written by tensorboardX, without torch. An epoch that is sent again replaces the earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from tensorboardX import SummaryWriter

from training.trackers import Title


class Tensorboard:
    """Event files in the tracked run's folder, so that `tensorboard --logdir runs` calls it RUN/fold_K; a file is made
    only when there is something to write."""

    rewinds = True

    def __init__(self, title: Title, state: Mapping[str, Any]):
        self.state: dict[str, Any] = {"begun": True}
        self._title, self._begun, self._last = title, bool(state), 0
        self._open: SummaryWriter | None = None

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """One scalar a figure. A number that is not larger than the last one replaces that epoch and all later ones."""
        writer = self._writer(number, anew=number <= self._last)
        for name, value in values.items():
            writer.add_scalar(name, value, number)
        self._last = number

    def picture(self, name: str, image: NDArray[np.uint8], epoch: int) -> None:
        """An image at an epoch."""
        self._writer(epoch + 1).add_image(name, image, epoch, dataformats="HWC")

    def close(self) -> None:
        """Flush and close."""
        if self._open is not None:
            self._open.close()

    def _writer(self, first: int, anew: bool = False) -> SummaryWriter:
        """The open file, or a new one, before which epochs from `first` on no longer count."""
        if self._open is None or anew:
            self.close()
            purged = first if self._begun else None
            # Files are named by the second and read by name: the suffix keeps those of one second apart, in order.
            suffix = f".{len(list(self._title.folder.glob('events.out.tfevents.*'))):04d}"
            self._open = SummaryWriter(str(self._title.folder), purge_step=purged, filename_suffix=suffix)
            if not self._begun:
                text = yaml.safe_dump(dict(self._title.settings), sort_keys=False)
                self._open.add_text("settings", "    " + text.replace("\n", "\n    "), 0)
            self._begun = True
        return self._open


open = Tensorboard
