"""Asks the second heads of an ensemble (`pairs`) about the images of their two classes, in whole batches.

It wraps the panel that answers with the ensemble itself. The members of a second head have a thread of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from config.errors import ConfigError
from infer import pairs
from infer.ensemble import Ensemble
from infer.finish import Finish
from infer.options import RunOptions
from infer.pairs import Pair
from infer.prepare import Prepared
from infer.residency import Keep, Members
from infer.rounds import Answers, Panel, gather


class Answering(Protocol):
    """What answers a round."""

    def answer(self, batches: Sequence[Prepared]) -> list[Answers]:
        """The answers to a round."""


@dataclass(frozen=True, eq=False)
class Second:
    """One second head, ready to be asked: `columns` of the ensemble's answers in the order of its own two classes."""

    columns: tuple[int, ...]
    weight: float
    lowest: float
    panel: Panel

    def ask(self, batches: Sequence[Prepared], where: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
        """float32 `[n]`: the probability of the first of its classes for (batch, place) pairs, a batch at most."""
        images = gather(batches, where, self.panel.sources)
        said = self.panel.members.run(lambda: self.panel.mix(self.panel.alone([images])[0]))
        return said[: len(where), 0]


@dataclass(frozen=True, eq=False)
class PairPanel:
    """A panel whose answers the second heads improve; at most one of them is asked about an image."""

    panel: Answering
    seconds: tuple[Second, ...]

    def answer(self, batches: Sequence[Prepared]) -> list[Answers]:
        """The answers to a round."""
        answers = self.panel.answer(batches)
        which = [pairs.asked(answer.probabilities, [one.columns for one in self.seconds]) for answer in answers]
        passes = [answer.passes for answer in answers]
        size = len(batches[0].images[0])
        for number, second in enumerate(self.seconds):
            where = [(n, row) for n, rows in enumerate(which) for row in np.flatnonzero(rows == number).tolist()]
            for start in range(0, len(where), size):
                part = where[start : start + size]
                for (n, row), said in zip(part, second.ask(batches, part), strict=True):
                    mine = answers[n].probabilities[row : row + 1]
                    pairs.share(mine, second.columns, said[None], second.weight, second.lowest)
                    passes[n] += len(second.panel.places) * len(second.panel.ensemble.views)
        return [answer._replace(passes=count) for answer, count in zip(answers, passes, strict=True)]


def opened(ensemble: Ensemble, options: RunOptions, keep: Keep) -> list[Members]:
    """The members of each second head; raises what `Members` raises, with none left open."""
    found: list[Members] = []
    try:
        for pair in ensemble.pairs:
            found.append(Members(pair.members, options, keep))
    except BaseException:
        for members in found:
            members.close()
        raise
    return found


def beside(
    panel: Answering,
    ensemble: Ensemble,
    class_names: Sequence[str],
    members: Sequence[Members],
    inputs_of: Sequence[tuple[int, ...]],
) -> Answering:
    """The panel with the ensemble's second heads, whose pixels are `inputs_of` for all their members one after another.

    `ConfigError` where a second head knows other classes than the file says, or the ensemble has none such.
    """
    seconds, begun = [], 0
    for pair, held in zip(ensemble.pairs, members, strict=True):
        columns = _columns(pair, held.cards[0].class_names, class_names)
        end = begun + len(pair.members)
        alone = Ensemble(
            views=ensemble.views, merge=ensemble.view_merge, tempered=ensemble.tempered, members=pair.members
        )
        finish = Finish(alone, held.cards[0].class_names)
        own = Panel(alone, held, tuple(range(len(pair.members))), tuple(inputs_of[begun:end]), finish)
        seconds.append(Second(columns, pair.weight, ensemble.clip, own))
        begun = end
    return PairPanel(panel, tuple(seconds)) if seconds else panel


def _columns(pair: Pair, known: Sequence[str], class_names: Sequence[str]) -> tuple[int, ...]:
    if sorted(known) != sorted(pair.classes):
        raise ConfigError(
            f"pairs: {pair.members[0]} knows {', '.join(map(repr, known[:3]))}, not the two classes "
            f"{pair.classes[0]!r} and {pair.classes[1]!r}; name a member that `python -m training pair` made of them"
        )
    unknown = [name for name in known if name not in class_names]
    if unknown:
        raise ConfigError(f"pairs: {unknown[0]!r} is no class of the members; they know {class_names[0]!r}, ...")
    return tuple(class_names.index(name) for name in known)
