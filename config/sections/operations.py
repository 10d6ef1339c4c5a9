"""The operations of augmentation as settings: names, parameters and their ranges. What they do is `data.augment`."""

from __future__ import annotations

from typing import NamedTuple

PROB = "prob"


class Parameter(NamedTuple):
    """A parameter of an operation: what it limits, and the values it takes."""

    description: str
    minimum: float
    maximum: float


_EITHER_WAY = Parameter("the factor is at most 1 + limit and at least 1 / (1 + limit)", 0, 10)
PROBABILITY = Parameter("probability that the operation acts on an image", 0, 1)

# Operation -> what it does, and its parameters; each also takes `prob`. Strengths are upper limits of what is drawn.
OPERATIONS: dict[str, tuple[str, dict[str, Parameter]]] = {
    "rotate90": ("0, 90, 180 or 270 degrees, each as likely", {}),
    "bleed_through": (
        "the back of a page shows through",
        {"opacity": Parameter("share of the ink on the back", 0, 1)},
    ),
    "erosion": ("dark strokes grow", {"size": Parameter("share of the short side", 0, 0.1)}),
    "dilation": ("dark strokes thin out", {"size": Parameter("share of the short side", 0, 0.1)}),
    "shadow": ("a soft shadow from one side", {"intensity": Parameter("share of the light", 0, 1)}),
    "affine": (
        "rotate, shear, scale and translate at once",
        {
            "degrees": Parameter("rotation either way", 0, 180),
            "shear": Parameter("degrees along x, either way", 0, 60),
            "scale": Parameter("at most 1 + scale and at least 1 / (1 + scale)", 0, 4),
            "translate": Parameter("share of the short side, either way", 0, 1),
        },
    ),
    "rotate": ("rotate", {"degrees": Parameter("either way", 0, 180)}),
    "rotate_any": ("rotate by any angle", {"degrees": Parameter("either way", 0, 180)}),
    "shear": ("shear along x", {"degrees": Parameter("either way", 0, 60)}),
    "perspective": (
        "seen from the side",
        {"distortion_scale": Parameter("a corner moves by at most half of it times the edge", 0, 1)},
    ),
    "brightness": ("brightness", {"limit": _EITHER_WAY}),
    "contrast": ("contrast", {"limit": _EITHER_WAY}),
    "saturation": ("saturation", {"limit": _EITHER_WAY}),
    "hue": ("hue", {"limit": Parameter("share of the colour circle, either way", 0, 0.5)}),
    "gamma": ("gamma", {"limit": Parameter("gamma is at most 1 + limit and at least 1 / (1 + limit)", 0, 10)}),
    "grayscale": ("the colour is removed", {}),
    "posterize": ("fewer bits for each channel", {"bits": Parameter("fewest bits", 1, 8)}),
    "solarize": ("bright values are inverted", {"threshold": Parameter("lowest threshold", 0, 256)}),
    "gaussian_blur": ("Gaussian blur", {"sigma": Parameter("share of the short side", 0, 0.1)}),
    "gaussian_noise": (
        "Gaussian noise",
        {"std": Parameter("standard deviation in levels of 0 to 255", 0, 255)},
    ),
    "jpeg": ("JPEG compression", {"quality": Parameter("lowest quality; the highest is 95", 1, 95)}),
    "random_erasing": (
        "a rectangle becomes noise",
        {"scale": Parameter("largest share of the area", 0, 1)},
    ),
}
