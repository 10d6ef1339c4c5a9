"""Images to change, generators to change them with, and how far two images are apart."""

from __future__ import annotations

import numpy as np

from data.rng import philox


def photograph(height: int = 150, width: int = 211) -> np.ndarray:
    """Textures from coarse to fine, as photographs have them (spectrum 1 / f), in colour."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]) + 1 / width
    planes = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency).real for _ in range(3)]
    image = np.stack(planes, -1) @ np.array([[1, 0.8, 0.6], [0, 0.6, 0.3], [0.1, 0, 0.7]])
    image = (image - image.mean()) / image.std() * 55 + 120
    return np.clip(image, 0, 255).astype(np.uint8)


PHOTO = photograph()


def chance(number: int = 0) -> np.random.Generator:
    return philox(0, "augment", 0, number)


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    assert one.dtype == np.uint8 and one.shape == other.shape
    return np.abs(one.astype(int) - np.asarray(other).astype(int))
