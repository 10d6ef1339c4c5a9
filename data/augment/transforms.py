"""What the loader does to each decoded image: one fixed way to evaluate, and many with chance to train.

What acts is decided by `config.sections.augment`: its level is a table of operations, its `ops` change them one by
one, and its policy may take the level's place. How an operation works is in `data.augment.ops`, `colour`, `documents`,
`geometry` and `policies`. Operations act in the order in which a picture comes to be: the paper, how it lies, the
camera, the file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from config.sections.augment import OPERATIONS, PROB, Augment
from data import resize
from data.augment import colour, documents, geometry, ops, policies
from data.decode.image import shrinkage
from data.loading.samples import ByEpoch, Transform
from data.pixels import Pixels
from models.card import Preprocessing

NewRng = Callable[[], np.random.Generator]  # of the same numbers at each call

_ON_PAPER = {**geometry.FLIPS, **documents.OPS}
_SWITCHES = documents.SWITCHES | ops.SWITCHES
_FUNCTIONS = {**documents.OPS, **geometry.MOTIONS, **colour.MAPS, **ops.OPS}
_BESIDE_POLICY = ("random_erasing",)  # what a policy leaves to the level


@dataclass(frozen=True)
class EvalTransform:
    """How `prep` has an image prepared to be evaluated: uint8 `[H, W, 3]` to `[prep.size, prep.size, 3]`.

    It takes the loader's generator and leaves it alone.
    """

    prep: Preprocessing

    def __call__(self, image: Pixels, rng: np.random.Generator | None = None) -> Pixels:  # noqa: ARG002
        """The square of one image."""
        prep = self.prep
        if prep.fit == "squash":
            return resize.squash(image, prep.size, prep.interpolation, prep.resampling)
        if prep.fit == "letterbox":
            colour = geometry.fill(image, prep.pad)
            return resize.letterbox(image, prep.size, prep.interpolation, colour, prep.resampling)
        return resize.crop(image, prep.size, prep.crop_pct, prep.interpolation, prep.resampling)

    def shrink(self, height: int, width: int, new_rng: NewRng | None = None) -> int:  # noqa: ARG002
        """How many times smaller a file of that many pixels may be decoded: twice what is needed remains, and
        what is shown stays in its place. Pillow's filters want every pixel."""
        if self.prep.resampling == "pillow":
            return 1
        side = max(height, width) if self.prep.fit == "letterbox" else min(height, width)
        share = self.prep.crop_pct if self.prep.fit == "crop" else 1.0
        factor = shrinkage(side, 2 * self.prep.size / share)
        while factor > 1 and not self._keeps_place(height, width, factor):
            factor //= 2
        return factor

    def _keeps_place(self, height: int, width: int, factor: int) -> bool:
        """Whether what is shown has the same sides then, and sides rounded up move none of it by a tenth of a pixel."""
        rows, columns = self._sides(height, width)
        same = self._sides(-(-height // factor), -(-width // factor)) == (rows, columns)
        return same and -height % factor * rows <= 0.1 * height and -width % factor * columns <= 0.1 * width

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        """The sides to which an image of `height` x `width` is resized."""
        if self.prep.fit == "crop":
            return resize.cropped_from(height, width, self.prep.size, self.prep.crop_pct)
        if self.prep.fit == "letterbox":
            return resize.fitted(height, width, self.prep.size)
        return self.prep.size, self.prep.size


class Act(NamedTuple):
    """How often an operation acts (0 to 1), how strongly (0 to 1), and its limits where they are not the defaults."""

    probability: float
    strength: float = 1.0
    limits: Mapping[str, float] = {}


@dataclass(frozen=True)
class Level:
    """The operations of a level, and the smallest share of the area that a crop sees or a letterboxed image fills.

    Shares of None mean the fixed way of evaluation, and no flips.
    """

    operations: Mapping[str, Act] = field(default_factory=dict)
    least_seen: float | None = None
    least_filled: float | None = None


# How each operation acts where it is switched on and the level has none of it.
STANDARD = {name: Act(op.probability, op.strength) for name, op in OPERATIONS.items()}

LEVELS = {
    "none": Level(),
    "minimal": Level({"affine": Act(1.0, 0.35)}, least_seen=1.0, least_filled=0.8),
    "moderate": Level(
        {
            "affine": Act(0.5, 0.4),
            "brightness": Act(0.5, 0.5),
            "contrast": Act(0.5, 0.5),
            "saturation": Act(0.5, 0.5),
            "hue": Act(0.3, 0.5),
            "random_erasing": Act(0.1, 0.5),
        },
        least_seen=0.5,
        least_filled=0.7,
    ),
    "hard": Level(
        {
            "erosion": Act(0.1, 0.7),
            "dilation": Act(0.1, 0.7),
            "shadow": Act(0.15, 0.8),
            "affine": Act(0.7, 0.8),
            "perspective": Act(0.2, 0.7),
            "brightness": Act(0.5, 1.0),
            "contrast": Act(0.5, 1.0),
            "saturation": Act(0.5, 1.0),
            "hue": Act(0.5, 0.7),
            "gamma": Act(0.3, 0.8),
            "posterize": Act(0.1, 0.8),
            "solarize": Act(0.1, 0.8),
            "gaussian_blur": Act(0.2, 1.0),
            "gaussian_noise": Act(0.2, 0.8),
            "jpeg": Act(0.2, 0.8),
            "random_erasing": Act(0.3, 0.8),
        },
        least_seen=0.25,
        least_filled=0.55,
    ),
}


def as_it_is(image: Pixels, _rng: np.random.Generator) -> Pixels:
    """The transform of images that have been prepared already."""
    return image


def share_at(section: Augment, epoch: int, epochs: int) -> float:
    """The share (0 to 1) of its full strength that augmentation has in `epoch` (from 0) of `epochs`.

    A ramp rises to 1, or falls from it, in equal steps over the epochs before `off_epochs`; those last ones have 0.
    """
    active = epochs - section.off_epochs
    if epoch >= active:
        return 0.0
    if section.ramp == "up":
        return (epoch + 1) / active
    return 1 - epoch / active if section.ramp == "down" else 1.0


def alone(section: Augment, prep: Preprocessing) -> dict[str, Transform]:
    """Each operation that `section` lets act, by name: a transform in which it is the only one, and always acts."""
    acts = _acts(section, 1.0).items()
    return {name: Training(prep, {name: act._replace(probability=1.0)}, None, None) for name, act in acts}


def by_epoch(section: Augment, prep: Preprocessing, epochs: int) -> ByEpoch:
    """What the loader of a training of `epochs` takes: `train_transform` at each epoch's share of the strength."""
    return ByEpoch(functools.partial(_at_epoch, section, prep, epochs))


def _at_epoch(section: Augment, prep: Preprocessing, epochs: int, epoch: int) -> Transform:
    return train_transform(section, prep, share_at(section, epoch, epochs))


def train_transform(section: Augment, prep: Preprocessing, share: float = 1.0) -> Transform:
    """How an image is prepared to be trained on: uint8 `[H, W, 3]` and a generator to `[prep.size, prep.size, 3]`.

    `share` (0 to 1) scales the strength of every operation but the flips; where one has no strength, how often it acts.
    At 0, or where nothing is switched on, an image is prepared as for evaluation.
    """
    level, acts, policy = LEVELS[section.level], _acts(section, share), _policy(section, share)
    least = level.least_filled if prep.fit == "letterbox" else level.least_seen
    if section.min_scale is not None:
        least = section.min_scale
    if share == 0 or (least is None and not acts and policy is None):
        return EvalTransform(prep)
    return Training(prep, acts, policy, None if least is None else 1 - (1 - least) * share)


@dataclass(frozen=True)
class Training:
    """A transform for training, stage by stage; `least` as in `Level`, for the fit of `prep`."""

    prep: Preprocessing
    acts: Mapping[str, Act]
    policy: Callable[[Pixels, np.random.Generator], Pixels] | None
    least: float | None

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """uint8 `[H, W, 3]` to `[prep.size, prep.size, 3]`."""
        image = self._change(self._cropped(image, rng), rng, _ON_PAPER)
        image, padding = self._warped(image, rng)
        if self.policy is not None:
            image, padding = self.policy(image, rng), None  # it may have moved the padding
        tints = {name: act for name in colour.MAPS if (act := self._drawn(name, rng)) is not None}
        if tints:
            strengths = {name: act.strength for name, act in tints.items()}
            image = colour.tint(image, rng, strengths, {name: act.limits for name, act in tints.items()})
        image = self._change(image, rng, ops.OPS)
        if padding is not None and self.prep.pad == "grey":
            np.copyto(image, resize.PAD, where=padding[..., None])  # as evaluation has it, whatever the colours became
        return image

    def _cropped(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """The square that shows what training sees; to be letterboxed, the whole image at a moderate size."""
        size = self.prep.size
        if self.prep.fit == "letterbox":
            return geometry.reduced(image, size)
        if self.prep.fit == "squash" or self.least is None:
            return EvalTransform(self.prep)(image)
        if self.least == 1:
            return geometry.random_square(image, rng, size)
        return geometry.random_crop(image, rng, size, self.least)

    def shrink(self, height: int, width: int, new_rng: NewRng) -> int:
        """How many times smaller a file of that many pixels may be decoded for what will be made of it with the
        generator of `new_rng()`."""
        size = self.prep.size
        if self.prep.fit == "letterbox":
            return shrinkage(max(height, width), size)
        if self.prep.fit == "squash" or self.least is None:
            return EvalTransform(self.prep).shrink(height, width)
        most = shrinkage(min(height, width), size)
        if self.least == 1 or most == 1:
            return most
        box = geometry.crop_box(height, width, new_rng(), self.least)
        return shrinkage(min(box.height, box.width), size)

    def _warped(self, image: Pixels, rng: np.random.Generator) -> tuple[Pixels, NDArray[np.bool_] | None]:
        """All motions in one warp, and for a letterboxed image its position and its size on the square; with the
        padding that this leaves, bool `[S, S]`."""
        quad = start = geometry.corners(*image.shape[:2])
        for name, motion in geometry.MOTIONS.items():
            act = self._drawn(name, rng)
            if act is not None:
                quad = motion(quad, rng, act.strength, **act.limits)
        if self.prep.fit != "letterbox":
            return (image if quad is start else geometry.cover(image, quad)), None
        area = 1.0 if self.least is None else rng.uniform(self.least, 1)
        fill = geometry.fill(image, self.prep.pad)
        if quad is start:
            return geometry.random_letterbox(image, rng, self.prep.size, area, fill)
        return geometry.keep(image, quad, self.prep.size, area, rng, fill)

    def _change(self, image: Pixels, rng: np.random.Generator, stage: Mapping[str, ops.Op]) -> Pixels:
        for name, op in stage.items():
            act = self._drawn(name, rng)
            if act is not None:
                image = op(image, rng, act.strength, **act.limits)
        return image

    def _drawn(self, name: str, rng: np.random.Generator) -> Act | None:
        """How an operation acts on this image; None where it does not."""
        act = self.acts.get(name)
        return act if act is not None and rng.random() < act.probability else None


def limits(name: str) -> dict[str, float]:
    """The limits of an operation at strength 1, by parameter."""
    return {p.name: p.default for p in list(signature(_FUNCTIONS[name]).parameters.values())[3:]}


def _acts(section: Augment, share: float) -> dict[str, Act]:
    """The operations that may act, flips among them, with what the level, the policy, `ops` and `share` leave."""
    level = LEVELS[section.level]
    of_level = {n: act for n, act in level.operations.items() if section.policy == "none" or n in _BESIDE_POLICY}
    acts = {}
    for name, standard in STANDARD.items():
        wanted = section.ops.get(name)
        if wanted is False or (wanted is None and name not in of_level):
            continue
        probability, strength, limits_of = _overridden(name, level.operations.get(name, standard), wanted)
        if probability > 0:
            often = probability * share if name in _SWITCHES else probability
            acts[name] = Act(often, strength * share, limits_of)
    if level.least_seen is not None:
        acts |= {name: Act(0.5) for name in geometry.FLIPS if getattr(section, name)}
    return acts


def _overridden(name: str, act: Act, wanted: bool | Mapping[str, float] | None) -> Act:
    """`act` with the parameters of `wanted`; the others of the operation keep the strength of `act`."""
    values = dict(wanted) if isinstance(wanted, Mapping) else {}
    probability = values.pop(PROB, act.probability)
    if not values:
        return act._replace(probability=probability)
    return Act(probability, 1.0, {key: act.strength * limit for key, limit in limits(name).items()} | values)


def _policy(section: Augment, share: float) -> Callable[[Pixels, np.random.Generator], Pixels] | None:
    if section.policy == "none":
        return None
    if section.policy == "rand":
        options = {name: getattr(section, name) for name in ("operations", "magnitude", "magnitude_std")}
        return functools.partial(policies.rand, share=share, **options)
    return functools.partial(policies.trivial if section.policy == "trivial" else policies.three, share=share)
