"""A thread between a training and a tracker: it sends what the tracker has not got yet, and catches its errors.

The queues of the libraries do not replace it, since they begin once a run is open: docs/engineering/log.md has the
seconds that opening one takes where a server does not answer.
"""

from __future__ import annotations

import json
import math
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config.places import atomic_write
from training.run import results
from training.trackers import Opener, Title, Tracker

_PATIENCE = 30.0  # seconds that the end of a fold waits for a tracker


class Feed:
    """One tracker of one fold. `tracked_NAME.json` in the fold's folder records what was sent."""

    def __init__(self, name: str, opener: Opener, title: Title, say: Callable[[str], None]):
        self.name, self._opener, self._title, self._say = name, opener, title, say
        self._file = title.folder / f"tracked_{name}.json"
        self._sent: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}
        self._jobs: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tandem-{name}", daemon=True)
        self._thread.start()

    def epoch(self, number: int) -> None:
        """Send the new row of `history.jsonl`, of epoch `number`, and earlier ones that were not sent."""
        self._jobs.put(lambda tracker: self._tell(tracker, number))

    def picture(self, name: str, make: Callable[[], NDArray[np.uint8]], epoch: int) -> None:
        """An image `[H, W, 3]`, once for each epoch; it is made in the thread."""
        self._jobs.put(lambda tracker: self._show(tracker, name, make, epoch))

    def close(self, patience: float = _PATIENCE) -> None:
        """Wait until everything is sent; a tracker that takes longer than `patience` seconds is given up."""
        self._jobs.put(None)
        self._thread.join(patience)
        if self._thread.is_alive():
            self._say(f"track.{self.name}: has not answered for {patience:.0f} s and is given up; training goes on")

    def _work(self) -> None:
        try:
            tracker = self._opener(self._title, self._sent.get("state", {}))
            self._remember(state=tracker.state)
            while (job := self._jobs.get()) is not None:
                job(tracker)
            tracker.close()
        except Exception as error:  # whatever a tracker's package raises must not end a training
            text = " ".join(str(error).split())[:200] or type(error).__name__
            self._say(f"track.{self.name}: failed and is off until the next start ({text}); training goes on")

    def _tell(self, tracker: Tracker, number: int) -> None:
        if number <= self._last and tracker.rewinds:
            self._remember(epoch=number - 1)
        for row in results.epochs(self._title.folder):
            if row["epoch"] > self._last:
                # Before it is sent: a crash in between loses a row, which otherwise would be there twice.
                self._remember(epoch=int(row["epoch"]))
                tracker.epoch(self._last, figures(row))

    def _show(self, tracker: Tracker, name: str, make: Callable[[], NDArray[np.uint8]], epoch: int) -> None:
        shown = self._sent.get("pictures", {})
        if shown.get(name, -1) < epoch:
            self._remember(pictures={**shown, name: epoch})
            tracker.picture(name, make(), epoch)

    @property
    def _last(self) -> int:
        return int(self._sent.get("epoch", 0))

    def _remember(self, **what: Any) -> None:
        self._sent.update(what)
        atomic_write(self._file, json.dumps(self._sent))


def figures(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row of `history.jsonl` under the names that trackers show; those not finite are left out."""
    metrics = {name: value for name, value in row.items() if name not in ("epoch", "time", "best", "system")}
    system = {f"system/{name}": value for name, value in row.get("system", {}).items()}
    return {name: float(v) for name, v in {**metrics, **system}.items() if v is not None and math.isfinite(v)}
