"""Which folders and files are splits, by their names: train, training, seg_train, valid, test_images and so on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

Split = Literal["train", "val", "test", "unused"]

_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("pred", "predict", "prediction", "unlabeled", "unlabelled"), "unused"),
}
# Words beside a split's that say nothing of what the folder holds.
_FILLERS = frozenset(
    (
        *("image", "images", "img", "imgs", "jpg", "jpeg", "png", "photo", "photos", "picture", "pictures"),
        *("data", "dataset", "set", "split", "folder", "file", "files", "list", "csv", "label", "labels", "metadata"),
        *("resized", "cropped"),
    )
)


# Words of folders that hold images of all classes, or something else than images to train on.
_CONTENTS = _FILLERS | {"annotation", "annotations", "mask", "masks", "trimaps", "part", "parts"}


def says_nothing(name: str) -> bool:
    """Whether a folder's name has words, and none that could be a class: images, images_part_1, annotations."""
    words = _words(name)
    return bool(words) and _CONTENTS.issuperset(words)


def _words(name: str) -> list[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return [word for word in re.split(r"[^a-z]+", apart.casefold()) if word]


def _parts(name: str) -> tuple[Split | None, tuple[str, ...]]:
    """The split in a name, and its other meaningful words."""
    words = _words(name)
    splits = [_WORDS[word] for word in words if word in _WORDS]
    rest = tuple(word for word in words if word not in _WORDS and word not in _FILLERS)
    return (splits[0], rest) if len(set(splits)) == 1 else (None, rest)


def of_name(name: str) -> Split | None:
    """The split in a single name, such as a file's or a cell's; None where the name has another word."""
    split, rest = _parts(name)
    return split if not rest else None


def of_file(file: str) -> Split:
    """The split in a file's name or one of its folders, the nearest first; train where there is none."""
    for segment in reversed(Path(file).with_suffix("").parts):
        head = re.match(r"[A-Za-z_]+", segment)
        split = of_name(head.group(0)) if head else None
        if split:
            return split
    return "train"


def of_names(names: Iterable[str]) -> dict[str, Split]:
    """The splits among sibling folders by name; empty where none of them is for training.

    Other words beside a split's must be shared by a sibling of another split (seg_train with seg_test), so that a class
    `train_station` is no split.
    """
    families: dict[tuple[str, ...], dict[str, Split]] = {}
    for name in names:
        split, rest = _parts(name)
        if split:
            families.setdefault(rest, {})[name] = split
    for rest in sorted(families, key=len):
        family = families[rest]
        if "train" in family.values() and (not rest or len(set(family.values())) > 1):
            return family
    return {}
