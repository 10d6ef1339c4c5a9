"""ImageNet-1k's classes under the names that data sets have: synsets such as n01440764, and single names of a class."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence

from models.registry import TABLES

_SYNSET = re.compile(r"^(n\d{8})(?!\d)")


def places(class_names: Sequence[str]) -> dict[str, int]:
    """The number of each class by its synset and by each of its names that no other class has, as `key` writes them.

    Empty where `class_names` are not those of ImageNet-1k, as `models.pretrained` writes them.
    """
    names = _table("imagenet_1k")
    complete = len(class_names) == len(names) and all(
        shown in (name, f"{name} ({number})")
        for number, (shown, name) in enumerate(zip(class_names, names, strict=True))
    )
    if not complete:
        return {}
    words = [[key(word) for word in name.split(",")] for name in names]
    # Of a name that several classes have, the one that is called so first has it: maillot, crane and others have none.
    count = Counter(word for each in words for word in each)
    first = Counter(each[0] for each in words)
    by_word = {word: number for number, each in enumerate(words) for word in each if count[word] == 1}
    by_word |= {each[0]: number for number, each in enumerate(words) if first[each[0]] == 1}
    by_word |= {key(name): number for number, name in enumerate(names) if names.count(name) == 1}
    return by_word | {synset: number for number, synset in enumerate(_table("imagenet_1k_synsets"))}


def key(name: str) -> str:
    """What is compared of a class name: its synset where it begins with one (n02085620-Chihuahua), else the name in
    lower case with blanks for underscores and hyphens."""
    synset = _SYNSET.match(name)
    return synset.group(1) if synset else " ".join(re.sub(r"[_-]", " ", name).casefold().split())


def _table(stem: str) -> list[str]:
    return list(json.loads((TABLES / f"{stem}.json").read_text(encoding="utf-8")))
