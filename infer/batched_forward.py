"""From prepared batches to predictions: every member, every view, merged and mixed. Runs in the members' thread.

A round is a number of successive batches that are predicted together: one where all members stay in memory, several
where each is opened once for all of them, or where the unsure images of several batches get their extra views together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from config.errors import Diverged
from ensemble import merge, views
from ensemble.calibration.scaling import Floats
from ensemble.ensemble_file import Ensemble
from ensemble.member import Member
from ensemble.postprocess import Postprocess
from infer.model_cache import ModelCache
from infer.prepare import Prepared
from infer.runtimes import Predictor
from infer.timings import Timings

Images = NDArray[np.uint8]
# For (member, view), the logits of each batch that are already computed.
Known = Mapping[tuple[int, str], Sequence[NDArray[np.float32]]]
_ROUND_BYTES = 256 * 2**20


class Predictions(NamedTuple):
    """Predictions of M members for one batch of n images.

    `rows` int64 `[n]` is the images' positions in the input; `probabilities` float32 `[n, C]` are the ensemble's;
    `votes` int64 `[n, M]` is the class that each member alone, with all views, would choose. Of an image that `errors`
    names by row, the probabilities are NaN and the votes -1. `passes` counts the images that went through networks.
    """

    rows: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    votes: NDArray[np.int64]
    errors: Mapping[int, str]
    passes: int


@dataclass(frozen=True, eq=False)
class EnsembleForward:
    """The members of an ensemble and their inputs.

    `places[m]` is the index of the ensemble's member m among the opened `members`, `inputs_of[m]` are those of its
    pixels in a `Prepared`.
    """

    ensemble: Ensemble
    members: ModelCache
    places: tuple[int, ...]
    inputs_of: tuple[tuple[int, ...], ...]
    finish: Postprocess
    clock: Timings = field(default_factory=Timings)

    def predict(self, batches: Sequence[Prepared]) -> list[Predictions]:
        """The predictions of a round."""
        alone = self.alone([batch.images for batch in batches])
        passes = len(self.places) * len(self.ensemble.views)  # of each image
        return [
            finish(
                batch,
                self.finish.probabilities(logs),
                np.stack([rows.argmax(axis=1) for rows in logs], axis=1),
                passes * len(batch.rows),
            )
            for batch, logs in zip(batches, alone, strict=True)
        ]

    def alone(self, batches: Sequence[Sequence[Images]], known: Known | None = None) -> list[list[Floats]]:
        """For each batch and each member float64 `[B, C]`: its log probabilities with all views."""
        merging = [[merge.start(self.ensemble.view_merge) for _ in self.places] for _ in batches]
        numbers = range(len(self.places))
        for mine in [numbers] if self.members.resident else [[m] for m in numbers]:
            for number, m, logits in self._pass(batches, mine, known or {}):
                merging[number][m].add(logits, temperature=self.finish.view_temperature(self.ensemble.members[m]))
        return [[merger.log_probabilities() for merger in merged] for merged in merging]

    def once(self, m: int, images: Sequence[Images]) -> NDArray[np.float32]:
        """float32 `[B, C]`: the logits of member m for the first view of a batch."""
        forms = [views.apply(self.ensemble.views[0], images[source]) for source in self.inputs_of[m]]
        with self.members.held([self.places[m]]) as predictors:
            return self._logits(m, predictors[self.places[m]], forms)

    def _pass(
        self, batches: Sequence[Sequence[Images]], mine: Sequence[int], known: Known
    ) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        """(batch, member, logits) of members that are open together; each view of a batch is computed once."""
        with self.members.held([self.places[m] for m in mine]) as predictors:
            for number, images in enumerate(batches):
                for view in self.ensemble.views:
                    shown: dict[int, Images] = {}
                    for m in mine:
                        if (m, view) in known:
                            yield number, m, known[m, view][number]
                            continue
                        for source in self.inputs_of[m]:
                            if source not in shown:
                                shown[source] = views.apply(view, images[source])
                        forms = [shown[source] for source in self.inputs_of[m]]
                        yield number, m, self._logits(m, predictors[self.places[m]], forms)

    def _logits(self, m: int, predictor: Predictor, forms: Sequence[Images]) -> NDArray[np.float32]:
        with self.clock.measured(m, len(forms[0])):
            logits = predictor.logits(*forms)
        return finite(self.ensemble.members[m], "logits", logits)


def finite(member: Member, what: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """`rows` `[N, ...]`, the `what` of a member; `Diverged` where they are not finite."""
    wrong = int((~np.isfinite(rows)).any(axis=1).sum())
    if wrong:
        raise Diverged(
            f"{member}: its {what} are not finite for {wrong} of {len(rows)} images; run it "
            "with precision fp32, or leave it out of the ensemble and train it again with a lower optim.lr"
        )
    return rows


def gather(batches: Sequence[Prepared], where: Sequence[tuple[int, int]], sources: Set[int]) -> list[Images]:
    """Pixels of (batch, row) pairs, at most a batch of them: uint8 `[B, S, S, 3]`, black after them.

    Only those of `sources` are gathered; the others are those of the first batch.
    """
    images = list(batches[0].images)
    for source in sources:
        gathered = np.zeros_like(images[source])
        for row, (number, source_row) in enumerate(where):
            gathered[row] = batches[number].images[source][source_row]
        images[source] = gathered
    return images


def finish(batch: Prepared, probabilities: NDArray[np.float32], chosen: NDArray[np.int64], passes: int) -> Predictions:
    """The predictions of the batch's images, without padding; those of unreadable images are NaN and -1."""
    count = len(batch.rows)
    probabilities, chosen = probabilities[:count].copy(), chosen[:count].copy()
    for row in batch.errors:
        probabilities[row - batch.rows[0]], chosen[row - batch.rows[0]] = np.nan, -1
    return Predictions(batch.rows, probabilities, chosen, dict(sorted(batch.errors.items())), passes)


def batches_per_round(pixels: int, several: bool, most: int = 64) -> int:
    """The number of batches of `pixels` bytes that are predicted together: one, or `several`, within 256 MiB."""
    return max(1, min(most, _ROUND_BYTES // max(pixels, 1))) if several else 1


def in_rounds(batches: Iterable[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Batches in lists that end before every `size`-th number, so that a restart or a shard makes the same lists."""
    held: list[Prepared] = []
    for batch in batches:
        if held and batch.number % size == 0:
            yield held
            held = []
        held.append(batch)
        del batch
    if held:
        yield held
