"""Averaged weights that may take the place of the best epoch's when a fold ends: judged, compared, written.

How they are made is `averaging`; how weights are judged is the loop's, and handed in.
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
        """Put them in the place of the best epoch's weights where they score better; once for a training of `epochs`
        epochs, as the best then says."""
        self.saver.wait()
        place, metric = self.folder / checkpoint.BEST, stopping.metric
        if decided(self.group, lambda: not place.exists() or _competed(checkpoint.read_state(place), epochs)):
            return
        made = {"swa": self.judge(swa.mean, True)} if swa.count else {}
        if with_soup:
            made["soup"] = self.soup(metric)
        least = averaging.goodness({metric: stopping.best}, metric)
        for name, judged in made.items():
            reached = averaging.goodness(judged.scores, metric)
            self.say(f"{name}: {metric} {judged.scores[metric]:.4f}, best epoch {stopping.best:.4f}")
            if reached > least:
                least = reached
                said = {"epoch": stopping.best_epoch, "scores": judged.scores, "averaged": name, "epochs": epochs}
                if self.group.rank == 0:
                    self.saver.save(functools.partial(self._write, said, judged))

    def soup(self, metric: str) -> Judged:
        """The greedy soup of the best and the kept ends of epochs, written as the checkpoint `soup`."""
        self.saver.wait()
        names = decided(self.group, self._ingredients)
        judged, members = averaging.soup([self.folder / name for name in names], self.judge, metric)
        names = [path.name for path in members]
        if self.group.rank == 0:
            said = {"scores": judged.scores, "members": names}
            checkpoint.save_best(self.folder, self.card, judged.weights, said, checkpoint.SOUP)
        self.say(f"soup of {', '.join(names)}")
        return judged

    def _ingredients(self) -> list[str]:
        """The names of the whole checkpoints among them."""
        paths = [self.folder / checkpoint.BEST, *checkpoint.epoch_ends(self.folder)]
        return [path.name for path in paths if not checkpoint.damage(path)]

    def _write(self, said: dict[str, Any], judged: Judged) -> None:
        self.write_oof(judged.logits)
        checkpoint.save_best(self.folder, self.card, judged.weights, said)


def _competed(best: dict[str, Any], epochs: int) -> bool:
    """Whether the best weights are an average that was made at the end of so many epochs; of older ones it is not
    known, and they stay."""
    return "averaged" in best and best.get("epochs", epochs) == epochs
