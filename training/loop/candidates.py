"""Averaged weights that may replace the best epoch's at the end of a fold: judged, compared, written.

`averaging` computes them; the trainer passes the function that judges weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.group import Group
from models.card import Card
from training.distributed.ranks import decided
from training.loop import averaging, checkpoint
from training.loop.averaging import Judge, Judged, Swa
from training.loop.saver import Saver
from training.policy.stopping import Stopping


@dataclass(frozen=True)
class Candidates:
    """What a fold's averages need: its folder and card, the judge of weights, who writes logits (`oof.npz`), and whom
    to tell. All processes of the `group` judge, rank 0 writes."""

    group: Group
    folder: Path
    card: Card
    judge: Judge
    write_oof: Callable[[NDArray[np.float32]], None]
    saver: Saver
    say: Callable[[str], None]

    def compete(self, swa: Swa, with_soup: bool, stopping: Stopping, epochs: int) -> None:
        """Replace the best epoch's weights by averages that score better; once for a training of `epochs` epochs, which
        the state of the best then holds."""
        self.saver.wait()
        metric = stopping.metric
        if decided(self.group, lambda: self._has_competed(epochs)):
            return
        averages = {"swa": self.judge(swa.mean, True)} if swa.count else {}
        if with_soup:
            averages["soup"] = self.soup(metric)
        best = averaging.goodness({metric: stopping.best}, metric)
        for name, judged in averages.items():
            goodness = averaging.goodness(judged.scores, metric)
            self.say(f"{name}: {metric} {judged.scores[metric]:.4f}, best epoch {stopping.best:.4f}")
            if goodness > best:
                best = goodness
                state = {"epoch": stopping.best_epoch, "scores": judged.scores, "averaged": name, "epochs": epochs}
                if self.group.rank == 0:
                    self.saver.save(functools.partial(self._write, state, judged))

    def soup(self, metric: str) -> Judged:
        """The greedy soup of the best and the kept ends of epochs, written as the checkpoint `soup`."""
        self.saver.wait()

        def ingredients() -> list[str]:
            paths = [self.folder / checkpoint.BEST, *checkpoint.epoch_ends(self.folder)]
            return [path.name for path in paths if not checkpoint.damage(path)]

        names = decided(self.group, ingredients)
        judged, members = averaging.soup([self.folder / name for name in names], self.judge, metric)
        names = [path.name for path in members]
        if self.group.rank == 0:
            state = {"scores": judged.scores, "members": names}
            checkpoint.save_best(self.folder, self.card, judged.weights, state, checkpoint.SOUP)
        self.say(f"soup of {', '.join(names)}")
        return judged

    def _write(self, state: dict[str, Any], judged: Judged) -> None:
        self.write_oof(judged.logits)
        checkpoint.save_best(self.folder, self.card, judged.weights, state)

    def _has_competed(self, epochs: int) -> bool:
        """Whether the best weights are an average made after so many epochs; older ones do not say, and stay."""
        if not (self.folder / checkpoint.BEST).exists():
            return True
        best = checkpoint.read_state(self.folder / checkpoint.BEST)
        return "averaged" in best and best.get("epochs", epochs) == epochs
