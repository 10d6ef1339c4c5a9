"""Blurry and dark images: found among sharp ones; drawings, documents and sets that are soft or dark throughout not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.audit import images
from data.audit.findings import Finding
from data.audit.image_stats import look
from data.audit.images import Split

COUNT, PLANTED = 16, 4
Change = Callable[[np.ndarray], np.ndarray]


def photograph(seed: int) -> np.ndarray:
    """Noise of all scales, as natural images have it (an amplitude of 1 / frequency), in front of a light, with a few
    hard edges."""
    rng = np.random.default_rng(seed)
    height, width = 300 + 20 * (seed % 3), 400
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(width), np.fft.fftfreq(height)))
    frequency[0, 0] = 1
    planes = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency).real for _ in range(3)]
    image = np.stack([plane / plane.std() for plane in planes], -1) * 30 + rng.uniform(90, 150, 3)
    for _ in range(6):
        corner = rng.integers(0, (width - 60, height - 60))
        cv2.rectangle(
            image, corner.tolist(), (corner + rng.integers(20, 120, 2)).tolist(), rng.uniform(0, 255, 3).tolist(), -1
        )
    return np.clip(image, 0, 255).astype(np.uint8)


def drawing(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.full((400, 500, 3), 255, np.uint8)
    for _ in range(1 + seed % 4):
        centre, radius = rng.integers(100, 300, 2).tolist(), int(rng.integers(20, 90))
        cv2.circle(image, centre, radius, rng.integers(0, 200, 3).tolist(), -1, cv2.LINE_AA)
    return image


def document(seed: int) -> np.ndarray:
    page = np.full((700, 500, 3), 250, np.uint8)
    for line in range(4 + seed % 30):
        text, place = f"Received with thanks, number {seed * 977 + line}", (35, 40 + 20 * line)
        cv2.putText(page, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
    return page


def found(folder: Path, pictures: Sequence[np.ndarray], *kinds: str) -> list[Finding]:
    paths = [folder / f"{number:02}.bmp" for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        cv2.imwrite(str(path), picture[..., ::-1])
    names = [path.name for path in paths]
    split = Split("train", names, [look(path).facts for path in paths], ["a"] * len(paths))
    return [finding for finding in images.single(split) if finding.kind in kinds]


CHANGES: list[tuple[str, Change]] = [
    ("blurry", lambda image: cv2.GaussianBlur(image, (0, 0), 6)),
    ("blurry", lambda image: cv2.resize(cv2.resize(image, (25, 20), interpolation=cv2.INTER_AREA), image.shape[1::-1])),
    ("dark", lambda image: (image * 0.15).astype(np.uint8)),
]


@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_what_is_blurry_or_dark_among_photographs_is_found_and_nothing_else(kind, change, tmp_path):
    pictures = [photograph(seed) for seed in range(COUNT)]
    planted = range(0, COUNT, COUNT // PLANTED)
    for number in planted:
        pictures[number] = change(pictures[number])
    said = found(tmp_path, pictures, kind)
    assert [finding.id for finding in said] == [f"{number:02}.bmp" for number in planted]
    assert all(finding.action == "" and "a usual image has" in finding.detail for finding in said)


@pytest.mark.parametrize("draw", [photograph, drawing, document])
def test_sharp_pictures_of_any_kind_are_not_blurry_nor_dark(draw, tmp_path):
    pictures = [draw(seed) for seed in range(COUNT)]
    assert found(tmp_path, pictures, "blurry", "dark") == []


def test_drawings_and_documents_among_photographs_are_not_blurry(tmp_path):
    pictures = [(photograph, photograph, drawing, document)[seed % 4](seed) for seed in range(COUNT)]
    assert found(tmp_path, pictures, "blurry") == []


@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_a_set_that_is_soft_or_dark_throughout_is_as_it_is_meant(kind, change, tmp_path):
    assert found(tmp_path, [change(photograph(seed)) for seed in range(COUNT)], kind) == []


def test_small_and_blank_images_are_not_judged(tmp_path):
    pictures = [photograph(seed) for seed in range(10)]
    pictures += [cv2.resize(photograph(1), (24, 24), interpolation=cv2.INTER_AREA), np.zeros((200, 200, 3), np.uint8)]
    assert found(tmp_path, pictures, "blurry", "dark") == []
