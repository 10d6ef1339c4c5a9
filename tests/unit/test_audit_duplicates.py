"""Copies of a picture are found in whatever form they come, and nothing else is taken for one."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.fft import dctn

from data.audit import duplicates
from data.audit.fingerprint import TURNS, hashes, laid, small
from data.audit.survey import survey
from data.decode.image import decode
from data.groups import connected

COUNT = 60


def scene(number: int, height: int = 120, width: int = 160) -> np.ndarray:
    """A picture of its own: textures from coarse to fine, as photographs have them."""
    rng = np.random.default_rng(number)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]) + 1 / width
    plane = np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency).real
    grey = np.clip(plane / plane.std() * 45 + 125, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.stack([grey, grey, np.roll(grey, 3, axis=1)], axis=-1))


SCENES = [scene(i) for i in range(COUNT)]


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def resized(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA if factor < 1 else 1)


FORMS = {
    "re-encoded": lambda image: jpeg(image, 60),
    "halved": lambda image: resized(image, 0.6),
    "enlarged": lambda image: resized(image, 1.7),
    "squashed": lambda image: cv2.resize(image, (90, 90), interpolation=cv2.INTER_AREA),
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1, ::-1],
    "turned left": lambda image: np.rot90(image),
    "turned right": lambda image: np.rot90(image, -1),
    "brighter": lambda image: cv2.convertScaleAbs(image, alpha=1.2, beta=10),
    "darker": lambda image: cv2.convertScaleAbs(image, alpha=0.7),
    "cropped around": lambda image: image[2:-2, 3:-3],
    "cropped at a corner": lambda image: image[5:, :-6],
}


def found(images: list[np.ndarray]) -> list[duplicates.Pair]:
    pictures = np.stack([small(np.ascontiguousarray(image)) for image in images])
    return duplicates.find(pictures, np.stack([hashes(picture) for picture in pictures]))


@pytest.mark.parametrize("form", FORMS)
def test_every_planted_copy_is_found_and_nothing_else(form: str) -> None:
    pairs = found([*SCENES, *(FORMS[form](image) for image in SCENES)])
    ends = {(min(pair[:2]), max(pair[:2])) for pair in pairs}
    wanted = {(i, i + COUNT) for i in range(COUNT)}
    assert len(ends & wanted) >= 0.95 * COUNT
    assert len(ends & wanted) >= 0.95 * len(ends)


def test_a_pair_says_how_one_picture_lies_on_the_other() -> None:
    (pair,) = found([SCENES[0], np.rot90(SCENES[0])])
    assert (pair.first, pair.turn.name) in {
        (0, "turned by 90 degrees counter-clockwise"),
        (1, "turned by 90 degrees clockwise"),
    }
    for turn in TURNS:
        picture = small(SCENES[1])
        np.testing.assert_array_equal(
            hashes(np.ascontiguousarray(laid(picture, turn)))[0], hashes(picture)[TURNS.index(turn)]
        )


def test_the_hash_is_that_of_phash() -> None:
    """Above the median among the 8 x 8 lowest frequencies, by SciPy's transform."""
    for image in SCENES[:5]:
        picture = small(image)
        reduced = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float64)
        low = dctn(reduced, norm="ortho")[:8, :8].ravel()[1:]
        bits = [(int(hashes(picture)[0]) >> place) & 1 for place in range(1, 64)]
        assert np.mean(np.array(bits) == (low > np.median(low))) > 0.96  # the median itself falls to either side


def test_the_search_misses_no_near_hash() -> None:
    rng = np.random.default_rng(3)
    own = rng.integers(0, 2**63, 300, dtype=np.uint64)
    for i in range(150, 300):  # half of them a few bits away from the other half
        flipped = rng.choice(64, rng.integers(0, 15), replace=False).astype(np.uint64)
        own[i] = own[i - 150] ^ np.bitwise_or.reduce(np.uint64(1) << flipped, initial=np.uint64(0))
    first, second, *_ = duplicates._candidates(np.repeat(own[:, None], 8, axis=1), own, duplicates.RADIUS)
    pairs = {(min(a, b), max(a, b)) for a, b in zip(first.tolist(), second.tolist(), strict=True)}
    distance = np.bitwise_count(own[:, None] ^ own[None])
    near = {(a, b) for a, b in np.argwhere(distance <= duplicates.RADIUS).tolist() if a < b}
    assert pairs == near and len(near) > 50


def test_blank_pages_and_small_digits_are_not_copies_of_each_other(all_digits, tmp_path) -> None:
    blank = [np.full((80, 60, 3), level, dtype=np.uint8) for level in (255, 254, 240)]
    assert not found(blank)
    paths = sorted((all_digits / "train").iterdir())[:400]
    pairs = survey(paths, tmp_path).pairs
    assert len(pairs) < 5
    for pair in pairs:
        one, other = decode(paths[pair.first]), decode(paths[pair.second])
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9


def test_groups_are_what_is_connected() -> None:
    np.testing.assert_array_equal(connected(5, [(0, 3), (3, 4)]), [0, 1, 2, 0, 0])
