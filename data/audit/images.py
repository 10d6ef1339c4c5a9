"""What is odd about single images and classes, from their facts: the findings that need no comparison of pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.stats import ks_2samp

from config.text import counted
from data.audit.findings import Finding
from data.audit.image_stats import ImageStats

LEAST = 10  # images that a class should have
_STRIP = 4.0  # ratio of the sides
_SIZES = 4.0  # times the median side
_BLANK = 3.0  # levels of standard deviation
_BLUR, _SOFTER = 0.6, 0.15  # the least blur of a blurry image, and its least distance above the median
_DARK, _DIMMER = 50.0, 0.5  # the highest highlights of a dark image, and their largest share of the median
_COMMON = 0.2  # share of a split above which a harmless property is one finding and not one for each image
_SHIFT, _CHANCE = 0.2, 0.001  # Kolmogorov-Smirnov distance and p-value that make a shift worth telling


@dataclass(frozen=True)
class Split:
    """The images of one side: their IDs, facts and, in training, the names of their classes ("" in the test set)."""

    name: str
    ids: Sequence[str]
    facts: Sequence[ImageStats]
    targets: Sequence[str]


@dataclass(frozen=True)
class Measure:
    """One row of the comparison of training and test images: the 5th, 50th and 95th percentile of each."""

    name: str
    train: tuple[float, float, float]
    test: tuple[float, float, float]
    distance: float
    shifted: bool


def single(split: Split) -> list[Finding]:
    """The findings about each image by itself."""
    read = [(min(facts.width, facts.height), facts.blur, facts.highlights) for facts in split.facts if not facts.fault]
    side, blur, highlights = np.median(np.array(read or [(0, 0.0, 0.0)]), axis=0).tolist()
    findings = []
    for i, facts in enumerate(split.facts):
        if facts.fault == "is empty":
            findings.append(_of(split, i, "empty", "the file has no bytes"))
        elif facts.fault:
            kind = "truncated" if "truncated" in facts.fault.lower() else "unreadable"
            findings.append(_of(split, i, kind, facts.fault))
        else:
            odd = _odd(split.ids[i], facts, side, blur, highlights)
            findings += [_of(split, i, kind, text) for kind, text in odd]
    for kind, (applies, text) in _PROPERTIES.items():
        having = [i for i, facts in enumerate(split.facts) if not facts.fault and applies(facts)]
        if len(having) > _COMMON * len(split.ids):
            example = text(split.facts[having[0]])
            detail = f"{len(having)} of {len(split.ids)} {split.name} images: {example}"
            findings.append(Finding(kind, detail, split=split.name))
        else:
            findings += [_of(split, i, kind, text(split.facts[i])) for i in having]
    return findings


def classes(split: Split, least: int = LEAST) -> list[Finding]:
    """Classes of fewer than `least` images, and pairs of names that differ in case, blanks and marks alone."""
    names, counts = np.unique(np.array(split.targets), return_counts=True)
    findings = []
    for name, count in zip(names.tolist(), counts.tolist(), strict=True):
        if count < least:
            text = f"class {name} has {counted(count, 'image')}, fewer than {least}"
            findings.append(Finding("small_class", text, split="train", target=name))
    spelled: dict[str, str] = {}
    for name in names.tolist():
        number = float(name) if re.fullmatch(r"[+-]?\d+([.]\d*)?", name) else None  # 1 and 1.0 are one
        plain = re.sub(r"[\W_]+", "", name).casefold() if number is None else str(number)
        if plain and spelled.setdefault(plain, name) != name:
            how = "differ in case or marks alone" if number is None else "are the same number"
            text = f"the names {spelled[plain]!r} and {name!r} {how}; relabel one of them"
            findings.append(Finding("alias", text, split="train", target=name))
    return findings


def shift(train: Split, test: Split) -> list[Measure]:
    """The measures of the images, compared by the two-sample Kolmogorov-Smirnov test."""
    left, right = ([facts for facts in split.facts if not facts.fault] for split in (train, test))
    if not left or not right:
        return []
    measures = []
    for name, of in _MEASURES.items():
        values = [of(facts) for facts in left], [of(facts) for facts in right]
        result = ks_2samp(*values)
        low, high = (tuple(np.percentile(side, [5, 50, 95]).round(2).tolist()) for side in values)
        shifted = bool(result.statistic >= _SHIFT and result.pvalue <= _CHANCE)
        measures.append(Measure(name, low, high, round(float(result.statistic), 3), shifted))
    return measures


def shifts(measures: Sequence[Measure]) -> list[Finding]:
    """A finding for each measure whose distributions differ."""
    text = "{0.name}: median {0.train[1]:g} in training, {0.test[1]:g} in the test set (distance {0.distance:.2f})"
    return [Finding("shift", text.format(measure)) for measure in measures if measure.shifted]


def _of(split: Split, i: int, kind: str, text: str) -> Finding:
    dropped = split.name == "train" and kind in ("unreadable", "truncated", "empty", "near_blank")
    action = "drop" if dropped else ""
    return Finding(kind, text, split.ids[i], split.name, split.targets[i], action=action)  # type: ignore[arg-type]


def _odd(name: str, facts: ImageStats, side: float, blur: float, highlights: float) -> Iterator[tuple[str, str]]:
    """What is odd about an image, by itself or beside the median short side, blur and highlights of its split: X-rays
    are all dark, and enlarged pictures are all soft."""
    suffix = re.search(r"\.[^./]+$", name)
    expected = Image.registered_extensions().get(suffix[0].lower()) if suffix else None
    if expected and expected != facts.format and {expected, facts.format} != {"JPEG", "MPO"}:
        yield "wrong_extension", f"is {facts.format}, its name says {expected}"
    ratio = max(facts.width, facts.height) / min(facts.width, facts.height)
    if ratio >= _STRIP:
        yield "extreme_aspect", f"{facts.width} x {facts.height}, sides of 1 to {ratio:.1f}"
    blank = facts.contrast < _BLANK
    if blank:
        yield "near_blank", f"standard deviation {facts.contrast:.1f} of 255 levels, mean {facts.brightness:.0f}"
    short = min(facts.width, facts.height)
    if short * _SIZES < side or short > side * _SIZES:
        yield "extreme_size", f"{facts.width} x {facts.height}, where a usual short side is {side:.0f}"
    if facts.blur >= max(_BLUR, blur + _SOFTER) and not blank:
        yield "blurry", f"blur {facts.blur:.2f} of 1, where a usual image has {blur:.2f}"
    if facts.highlights <= min(_DARK, _DIMMER * highlights) and not blank:
        text = f"19 of 20 pixels are no brighter than {facts.highlights:.0f} of 255"
        yield "dark", f"{text}, where a usual image has {highlights:.0f}"


# Harmless properties: each image that has one is a finding, or all of them are one finding where they are many.
_PROPERTIES: dict[str, tuple[Callable[[ImageStats], bool], Callable[[ImageStats], str]]] = {
    "animated": (lambda f: f.frames > 1, lambda f: f"{f.frames} frames, of which the first is used"),
    "cmyk": (lambda f: f.mode == "CMYK", lambda f: f"stored as {f.mode}"),
    "grey": (lambda f: f.saturation < 0.5 and f.contrast >= _BLANK, lambda f: f"no colour (stored as {f.mode})"),
    "exif_rotated": (lambda f: f.orientation != 1, lambda f: f"EXIF orientation {f.orientation}"),
}


_MEASURES: dict[str, Callable[[ImageStats], float]] = {
    "width in pixels": lambda f: f.width,
    "height in pixels": lambda f: f.height,
    "aspect (width / height)": lambda f: f.width / f.height,
    "file size in KiB": lambda f: f.bytes / 1024,
    "brightness": lambda f: f.brightness,
    "contrast": lambda f: f.contrast,
    "saturation": lambda f: f.saturation,
    "sharpness": lambda f: f.sharpness,
    "tilt in degrees": lambda f: f.tilt,
    "size of tilt in degrees": lambda f: abs(f.tilt),
}
