"""A second look at images that an ensemble is not sure of: skew taken out, contrast restored, both answers averaged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.decode import decode
from data.restore import restored
from infer.inputs import Source
from infer.runner import Runner

_AT_ONCE = 64  # restored images in memory


def second_look(
    runner: Runner, images: Sequence[Source], probabilities: NDArray[np.float32], below: float
) -> tuple[NDArray[np.float32], int]:
    """The probabilities float32 `[N, C]` of `images` with unsure images looked at again, and how many these are.

    An image is unsure where its likeliest class has less than `below`; its new answer is the mean of that to the image
    as it is and that to `data.restore.restored` of it, so that a restoration that harms does not decide alone.
    """
    unsure = np.flatnonzero(probabilities.max(axis=1) < below)
    answers = probabilities.copy()
    for start in range(0, len(unsure), _AT_ONCE):
        rows = unsure[start : start + _AT_ONCE]
        again = runner.predict([restored(_pixels(images[row])) for row in rows.tolist()]).probabilities
        answers[rows] = (answers[rows] + again) / 2
    return answers, len(unsure)


def _pixels(image: Source) -> NDArray[np.uint8]:
    return image if isinstance(image, np.ndarray) else decode(image)
