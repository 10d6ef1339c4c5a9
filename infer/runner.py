"""An opened ensemble that predicts images: from Python (`predict`), or a stream of any length in batches (`stream`).

Threads decode the next batches while the members compute in a thread of their own. Rows come out in input
order. Memory does not grow with the number of images, unless the caller keeps the predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from config.errors import DataError
from data.augment.transforms import EvalTransform
from data.decode.image import whole
from ensemble.ensemble_file import Ensemble
from ensemble.options import NONE_GIVEN, RunOptions
from ensemble.postprocess import Postprocess
from infer import features as pooled
from infer.adaptive import AdaptiveForward, check, strongest
from infer.batched_forward import EnsembleForward, Predictions, batches_per_round, finite, in_rounds
from infer.io import prior
from infer.io.inputs import Image, Inputs, Pictured, of_images, of_paths
from infer.model_cache import Keep, ModelCache
from infer.prepare import AHEAD, Grid, Prepared, prepare
from infer.runtimes import GivesFeatures
from infer.timings import Timings

_Result = TypeVar("_Result")
OnBad = Literal["error", "skip", "partial"]  # unreadable images, as `data.on_bad_image`

# Pixels of an automatic batch: 64 images at 224, 16 at 448. More take memory and are not faster.
_BATCH_PIXELS = 64 * 224 * 224
_BATCH_MOST = 128


class Prediction(NamedTuple):
    """The names of the C classes, and float32 `[N, C]` probabilities whose columns they name."""

    names: tuple[str, ...]
    probabilities: NDArray[np.float32]


class Runner:
    """An ensemble that is ready to predict; a context manager, and safe to use from many threads.

    `options` are given to all members that take them, `keep` says which members stay in memory (see `ModelCache`).
    Raises what `ModelCache` raises: nothing is decoded before all members are open and fit together. `members` are
    those of another runner that stays open, and `places` which of them this one's ensemble has. `adaptive` gives all
    views and members to unsure images only (see `AdaptiveForward`).
    """

    def __init__(
        self,
        ensemble: Ensemble,
        options: RunOptions = NONE_GIVEN,
        keep: Keep = "auto",
        members: ModelCache | None = None,
        places: Sequence[int] | None = None,
        adaptive: bool = False,
    ):
        self.ensemble, self.options = ensemble, options
        self._members, self._owner = members or ModelCache(ensemble.members, options, keep), members is None
        self._places = tuple(range(len(ensemble.members)) if places is None else places)
        cards = [self._members.cards[number] for number in self._places]
        self._most_pixels = max(card.most_pixels for card in cards)
        self.class_names, self.models = cards[0].class_names, [card.model for card in cards]
        # The distinct pixels that members want, and which of them each wants; each member applies mean and std itself.
        pixels = [[prep.pixels for prep in card.inputs] for card in cards]
        self._inputs = list(dict.fromkeys(prep for preps in pixels for prep in preps))
        inputs_of = tuple(tuple(map(self._inputs.index, preps)) for preps in pixels)
        self.finish, self.prior = Postprocess(ensemble, self.class_names), prior.of_cards(cards)
        self.adaptive = adaptive
        self.clock = Timings()
        panel = EnsembleForward(ensemble, self._members, self._places, inputs_of, self.finish, self.clock)
        self._panel = AdaptiveForward(panel, check(ensemble), strongest(ensemble)) if adaptive else panel

    @property
    def described(self) -> list[str]:
        """Device and precision of the members whose runtime chose them, a line each."""
        return self._members.described

    def run(
        self,
        paths: Sequence[Path],
        batch_size: int | None = None,
        workers: int = 0,
        on_bad_image: OnBad = "error",
    ) -> Iterator[Predictions]:
        """Predict files batch by batch, in their order; as `stream`, with unreadable images as `data.on_bad_image`."""
        truncated: dict[int, str] | None = {} if on_bad_image == "partial" else None
        grid = self.grid(len(paths), batch_size)
        return self.stream(of_paths(paths), grid, workers, on_bad_image != "error", truncated)

    def grid(self, count: int, batch_size: int | None = None) -> Grid:
        """The batches of `count` images; without a size a power of two by the members' largest image, at most 128."""
        fitting = max(1, min(_BATCH_PIXELS // self._most_pixels, _BATCH_MOST))
        size = batch_size or 1 << (fitting.bit_length() - 1)
        return Grid(count, max(1, min(size, count)))

    def unit(self, grid: Grid) -> int:
        """The number of batches that are predicted together: shards and resumed runs begin at multiples of it."""
        pixels = grid.size * sum(prep.size**2 * 3 for prep in self._inputs)
        # Adaptive: unsure images of several batches pass the other members together.
        return batches_per_round(pixels, self.adaptive or not self._members.resident, 16 if self.adaptive else 64)

    def stream(
        self,
        inputs: Inputs,
        grid: Grid,
        workers: int = 0,
        skip_bad: bool = False,
        truncated: dict[int, str] | None = None,
    ) -> Iterator[Predictions]:
        """Predict the batches of `grid` in order; `workers` 0 means one decoding thread per core.

        An image that cannot be read is reported in `Predictions.errors` with `skip_bad`, else it is a `DataError` with
        its name. With `truncated`, what remains of truncated files is taken, and `truncated` gets a line about each, by
        its row. The threads end with the iterator.
        """
        computed = self._computed(inputs, grid, workers, skip_bad, truncated, self.unit(grid), self._panel.predict)
        for predictions in computed:
            yield from predictions

    def _computed(
        self,
        inputs: Inputs,
        grid: Grid,
        workers: int,
        skip_bad: bool,
        truncated: dict[int, str] | None,
        unit: int,
        compute: Callable[[list[Prepared]], _Result],
    ) -> Iterator[_Result]:
        """The results of `compute`, in the members' thread, for each `unit` of prepared batches; see `stream`."""
        self._members.check_process()
        batches = prepare(inputs, self._inputs, grid, workers, AHEAD if unit == 1 else unit + 1, truncated)
        with closing(cast("Any", batches)):
            for held in in_rounds(batches, unit):
                bad = {row: fault for batch in held for row, fault in batch.errors.items()}
                if bad and not skip_bad:
                    raise DataError(bad[min(bad)])
                yield self._members.run(lambda held=held: compute(held))  # type: ignore[misc]
                del held

    def predict(self, images: Image | Iterable[Image]) -> Prediction:
        """Predict one image, which gives one row, or a list (or another iterable) of images in any mixture.

        An image is a path, encoded bytes, a PIL image, or a uint8 `[H, W, 3]` RGB array; an array `[N, H, W, 3]` is N
        of these. Raises `TypeError` for anything else, and `DataError` for an image that cannot be read. May be called
        from many threads at a time, not in a process that was forked after the runner was opened.
        """
        return self.predict_inputs(of_images(images))

    def predict_inputs(self, inputs: Inputs) -> Prediction:
        """Predict what has been collected, as `predict` does."""
        rows = [np.zeros((0, len(self.class_names)), dtype=np.float32)]
        if len(inputs):
            rows += [batch.probabilities for batch in self.stream(inputs, self.grid(len(inputs)))]
        return Prediction(self.class_names, np.concatenate(rows))

    def features(self, images: Image | Iterable[Image]) -> NDArray[np.float32]:
        """float32 `[N, D]`: the pooled features before the classifier of one image or many (see `predict`), as timm's
        `forward_head(forward_features(x), pre_logits=True)`. For runners of one checkpoint on torch or MLX and one
        view; `ConfigError` for others."""
        pooled.check(self.ensemble)
        inputs = of_images(images)
        rows = [batch.features for batch in self.stream_features(inputs, self.grid(len(inputs)))]
        return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)

    def stream_features(
        self,
        inputs: Inputs,
        grid: Grid,
        workers: int = 0,
        skip_bad: bool = False,
        truncated: dict[int, str] | None = None,
    ) -> Iterator[pooled.Pooled]:
        """The pooled features of the batches of `grid` in order; the arguments are those of `stream`."""
        yield from self._computed(inputs, grid, workers, skip_bad, truncated, 1, self._pooled)

    def _pooled(self, held: list[Prepared]) -> pooled.Pooled:
        (batch,), (number,) = held, self._places
        with self._members.held([number]) as predictors:
            predictor = cast("GivesFeatures", predictors[number])
            rows = predictor.features(batch.images[0])[: len(batch.rows)]
        return pooled.Pooled(batch.rows, finite(self.ensemble.members[0], "features", rows), batch.errors)

    def pixels(self, image: Pictured) -> NDArray[np.uint8]:
        """uint8 `[S, S, 3]`: an image as the first member sees it before any view."""
        first = self._inputs[0]
        return EvalTransform(first)(image(whole, first.icc_to_srgb))

    def in_thread(self, work: Callable[[], _Result]) -> _Result:
        """Do `work` in the thread of the members, where arrays of all engines may be made."""
        return self._members.run(work)

    def members(self) -> list[Runner]:
        """Each member alone, with all views. They share what this runner has opened, and end with its `close`."""
        ensembles = [self.ensemble.alone(m.model_copy(update={"weight": 1.0})) for m in self.ensemble.members]
        return [
            Runner(ensemble, members=self._members, places=[number])
            for ensemble, number in zip(ensembles, self._places, strict=True)
        ]

    @property
    def name(self) -> str:
        """The members' paths and runtimes."""
        runtimes = [self._members.runtimes[number] for number in self._places]
        pairs = zip(self.ensemble.members, runtimes, strict=True)
        return ", ".join(f"{member.path} ({runtime})" for member, runtime in pairs)

    def close(self) -> None:
        """Free all members."""
        if self._owner:
            self._members.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
