"""What undoes the damage to a scanned page before a model looks at it again: skew taken out, contrast restored."""

from __future__ import annotations

import cv2
import numpy as np

from data.augment import corrupt
from data.pixels import Pixels

_SIDE = 512  # the long side at which skew is measured
_MOST, _STEP = 15.0, 0.5  # degrees
_PAPER = 0.05  # side of the smallest spot of paper that is seen past the ink, as a share of the short side


def restored(image: Pixels) -> Pixels:
    """uint8 `[H, W, 3]` with `levelled` light and without its skew; the frame grows where the page is turned."""
    return deskewed(levelled(image))


def levelled(image: Pixels) -> Pixels:
    """Shadows and fading taken out: divided by the paper's own brightness, then stretched between ink and paper.

    The paper is what a closing (the brightest in a square, then the darkest of these) of 5% of the short side leaves,
    smoothed; ink is the 1st percentile.
    """
    side = max(3, round(_PAPER * min(image.shape[:2]))) | 1
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    quiet = cv2.medianBlur(grey, 3)
    paper = cv2.morphologyEx(quiet, cv2.MORPH_CLOSE, np.ones((side, side), dtype=np.uint8))
    paper = cv2.GaussianBlur(paper, (0, 0), side).astype(np.float32)
    even = image * (255 / np.maximum(paper, 16))[..., None]
    ink = float(np.percentile(even.min(axis=2), 1))
    return np.clip((even - ink) * (255 / max(255 - ink, 16)), 0, 255).astype(np.uint8)


def deskewed(image: Pixels) -> Pixels:
    """Turned back by `skew`; as it is where that is less than half a degree."""
    degrees = skew(image)
    return corrupt.skewed(image, -degrees) if abs(degrees) >= _STEP else image


def skew(image: Pixels) -> float:
    """By how many degrees (-15 to 15) a page is turned clockwise: the turn that makes rows of ink most distinct.

    The variance of the projection profile (Postl 1986) over rows and over columns, as a page may lie on its side.
    """
    scale = _SIDE / max(image.shape[:2])
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    edges = np.abs(cv2.Laplacian(cv2.GaussianBlur(grey, (3, 3), 0), cv2.CV_32F))
    angles = np.arange(-_MOST, _MOST + _STEP / 2, _STEP)
    return float(angles[int(np.argmax([_projection_variance(edges, -degrees) for degrees in angles.tolist()]))])


def _projection_variance(edges: np.ndarray, degrees: float) -> float:
    """How uneven the sums over rows and columns are once the edges are turned clockwise by `degrees`."""
    height, width = edges.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1)
    turned = cv2.warpAffine(edges, matrix, (width, height))
    return max(float(np.square(np.diff(turned.sum(axis=axis))).sum()) for axis in (0, 1))
