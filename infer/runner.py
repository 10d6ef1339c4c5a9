"""Runs an opened ensemble over images: decode once per distinct preprocessing, all members and views share the batches.

Decoding of the next batches goes on in the loader's threads while the members compute. Rows come out in input order.
Memory does not grow with the number of images, unless the caller keeps the answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from config.errors import DataError
from data.augment import eval_transform
from data.decode import decode
from data.images import Images
from data.loader import Loaded, Loader
from infer import views
from infer.ensemble import Ensemble, Mixture
from infer.finish import Finish
from infer.member import Opened, close_all, open_all
from models.card import Preprocessing

Image = str | Path | bytes | NDArray[np.uint8]
_BATCH = 64


class Answers(NamedTuple):
    """Answers to one batch of n images of M members.

    `rows` int64 `[n]` is the images' positions in the input; `probabilities` float32 `[n, C]` are the ensemble's;
    `votes` int64 `[n, M]` is the class that each member alone, with all views, would choose.
    """

    rows: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    votes: NDArray[np.int64]


class Prediction(NamedTuple):
    """The names of the C classes, and float32 `[N, C]` probabilities whose columns they name."""

    names: tuple[str, ...]
    probabilities: NDArray[np.float32]


class Runner:
    """An ensemble that is ready to answer; a context manager. Use it from the thread that opened it.

    `opened` are the members where they are open already. Raises what `open_all` raises: nothing is decoded before all
    members are open and fit together.
    """

    def __init__(self, ensemble: Ensemble, opened: Sequence[Opened] | None = None, **options: Any):
        self.ensemble = ensemble
        self._opened = list(opened or open_all(ensemble.members, **options))
        self.class_names = self._opened[0].predictor.card.class_names
        self.models = [one.predictor.card.model for one in self._opened]
        self.finish = Finish(ensemble, self.class_names)
        self._inputs = _by_input(self._opened)

    def run(self, paths: Sequence[Path], batch_size: int = _BATCH, workers: int = 0) -> Iterator[Answers]:
        """Answer files batch by batch, in their order; `workers` 0 means one thread a core.

        `DataError` with its name for an image that cannot be read.
        """
        if not paths:
            return
        size = min(batch_size, len(paths))
        order = np.arange(len(paths))
        decoded = Images() if len(self._inputs) > 1 else Images(cache_bytes=0)
        with ExitStack() as stack:
            streams = []
            for prep in self._inputs:
                loader = Loader(paths, eval_transform(prep), prep.size, size, workers, images=decoded)
                streams.append(stack.enter_context(closing(cast("Generator[Loaded]", loader.epoch(order)))))
            for batches in zip(*streams, strict=True):
                real = batches[0].weight > 0
                probabilities, votes = self._answer([batch.images for batch in batches])
                yield Answers(batches[0].index[real].copy(), probabilities[real], votes[real])

    def predict(self, images: Sequence[Image]) -> Prediction:
        """Answer files, encoded images and uint8 `[H, W, 3]` RGB arrays, in any mixture and order."""
        transforms = [eval_transform(prep) for prep in self._inputs]
        rows = [np.zeros((0, len(self.class_names)), dtype=np.float32)]
        for start in range(0, len(images), _BATCH):
            pixels = [_pixels(image) for image in images[start : start + _BATCH]]
            rows.append(self._answer([_stack(transform, pixels) for transform in transforms])[0])
        probabilities = np.concatenate(rows)
        return Prediction(self.class_names, probabilities)

    def members(self) -> list[Runner]:
        """Each member alone, with all views. They share what this runner has opened, and end with its `close`."""
        alone = [Opened(o.member.model_copy(update={"weight": 1.0}), o.predictor) for o in self._opened]
        return [Runner(self.ensemble.alone(one.member), [one]) for one in alone]

    @property
    def name(self) -> str:
        """The members' paths and runtimes."""
        return ", ".join(f"{one.member.path} ({one.predictor.runtime})" for one in self._opened)

    def close(self) -> None:
        """Free all members."""
        close_all(self._opened)

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, inputs: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The probabilities and votes of one batch, given as uint8 `[N, S, S, 3]` for each distinct preprocessing."""
        alone = [Mixture(self.ensemble.combine) for _ in self._opened]
        for images, places in zip(inputs, self._inputs.values(), strict=True):
            for view in self.ensemble.views:
                seen = views.apply(view, images)
                for place in places:
                    one = self._opened[place]
                    alone[place].add(one.predictor.logits(seen), temperature=self.finish.view_temperature(one.member))
        answers = [mixture.log_probabilities() for mixture in alone]
        return self.finish.probabilities(answers), np.stack([answer.argmax(axis=1) for answer in answers], axis=1)


def _by_input(opened: Sequence[Opened]) -> dict[Preprocessing, list[int]]:
    """The places of the members by the pixels they want; mean and standard deviation are applied by the member."""
    groups: dict[Preprocessing, list[int]] = {}
    for place, one in enumerate(opened):
        prep = dataclasses.replace(one.predictor.card.preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        groups.setdefault(prep, []).append(place)
    return groups


def _pixels(image: Image) -> NDArray[np.uint8]:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(f"image array of {image.dtype} {image.shape}: give uint8 of shape (height, width, 3), RGB")
        return image
    return decode(image if isinstance(image, bytes) else Path(image))


def _stack(
    transform: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], images: Sequence[NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    return np.stack([transform(image) for image in images])
