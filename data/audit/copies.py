"""What pairs of the same picture mean: duplicates, leaks into the test set, conflicts of labels, aliases, groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from config.text import counted
from data.audit.duplicates import Pair
from data.audit.findings import Action, Finding
from data.audit.fingerprint import Turn
from data.audit.image_stats import ImageStats
from data.groups import connected

_TEMPLATE = 4  # images up to which a group may be most of a class
_OVERLAP, _SHARED = 0.2, 3  # share of the smaller class, and images, that two classes of a finding share at least


@dataclass(frozen=True)
class Entry:
    """An image as findings name it: `target` is "" in the test set."""

    id: str
    split: str
    target: str


def grouped(facts: Sequence[ImageStats], pairs: Sequence[Pair]) -> NDArray[np.int64]:
    """The group int64 `[N]` of each image: copies of one picture, in whatever form, share a number."""
    first: dict[str, int] = {}
    readable = [(i, each.sha256) for i, each in enumerate(facts) if each.sha256 and not each.fault]
    exact = [(first[digest], i) for i, digest in readable if first.setdefault(digest, i) != i]
    return connected(len(facts), [*exact, *((pair.first, pair.second) for pair in pairs)])


def usable(group_of: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Groups int64 `[N]` that folds can keep together: one that has most of a class is taken apart again, as copies of
    a template that no fold could be without."""
    groups, next_group = group_of.copy(), int(group_of.max(initial=0)) + 1
    for group in np.flatnonzero(np.bincount(group_of) > _TEMPLATE).tolist():
        members = np.flatnonzero(group_of == group)
        counts = np.bincount(labels[members], minlength=int(labels.max()) + 1)
        if (2 * counts > np.bincount(labels)).any():
            groups[members] = next_group + np.arange(len(members))
            next_group += len(members)
    return groups


def find(entries: Sequence[Entry], facts: Sequence[ImageStats], pairs: Sequence[Pair]) -> list[Finding]:
    """All findings about copies among N images of both splits; `pairs` are those of `survey`."""
    group_of = grouped(facts, pairs)
    order = np.argsort(group_of, kind="stable")
    sets = np.split(order, np.flatnonzero(np.diff(group_of[order])) + 1)
    how = {frozenset((pair.first, pair.second)): pair for pair in pairs}
    findings: list[Finding] = []
    shared: Counter[frozenset[str]] = Counter()
    for members in (members_of.tolist() for members_of in sets if len(members_of) > 1):
        train = [i for i in members if entries[i].split == "train"]
        test = [i for i in members if entries[i].split != "train"]
        labels = {entries[i].target for i in train}
        shared.update(frozenset((a, b)) for a in labels for b in labels if a < b)
        copies = _Copies(entries, facts, how)
        findings += copies.leaks(train, test)
        findings += copies.conflicts(train) if len(labels) > 1 else copies.duplicates(train)
        findings += copies.duplicates(test)
    return findings + list(_aliases(entries, shared)) + _lying(entries, facts, pairs)


@dataclass(frozen=True)
class _Copies:
    """Findings about the copies of one picture, which are given by position."""

    entries: Sequence[Entry]
    facts: Sequence[ImageStats]
    how: dict[frozenset[int], Pair]

    def leaks(self, train: list[int], test: list[int]) -> Iterator[Finding]:
        for i in train if test else []:
            yield self._finding("leak", i, test, f"is in the test set: {self._form(i, test)}")

    def conflicts(self, train: list[int]) -> Iterator[Finding]:
        """The majority's label for the others; without a majority, copies of one file are dropped, others grouped."""
        ranked = Counter(self.entries[i].target for i in train).most_common()
        majority = ranked[0][0] if ranked[0][1] > ranked[1][1] else None
        one_file = len({self.facts[i].sha256 for i in train}) == 1
        for i in train:
            label = self.entries[i].target
            others = sorted((j for j in train if j != i), key=lambda j: self.entries[j].target == label)
            labels = ", ".join(sorted({self.entries[j].target for j in others} - {label}))
            text = f"labelled {label}, and {labels} as well: {self._form(i, others)}"
            action: Action = "drop" if one_file else ""
            if majority is not None:
                action = "relabel" if label != majority else ""
            value = str(majority) if action == "relabel" else ""
            yield self._finding("label_conflict", i, others, text, action, value)
        if majority is not None or not one_file:
            yield from self.duplicates(train)

    def duplicates(self, members: list[int]) -> Iterator[Finding]:
        """Later copies of a file are to be dropped, and what is left of the group is to be kept together."""
        first: dict[str, int] = {}
        for i in members:
            original = first.setdefault(self.facts[i].sha256, i)
            if original != i:
                yield self._finding("exact_duplicate", i, [original], f"is {self.entries[original].id}", "drop")
        different = list(first.values())
        for i in different if len(different) > 1 else []:
            others = [j for j in different if j != i]
            name = self.entries[different[0]].id
            yield self._finding("near_duplicate", i, others, self._form(i, others), "group", name)

    def _finding(
        self, kind: str, i: int, others: Sequence[int], text: str, action: Action = "", value: str = ""
    ) -> Finding:
        entry = self.entries[i]
        if entry.split != "train":
            action, value = "", ""
        related = tuple(self.entries[j].id for j in others)
        return Finding(kind, text, entry.id, entry.split, entry.target, related, action, value)

    def _form(self, i: int, others: Sequence[int]) -> str:
        """How `i` resembles the first of `others` that it was compared with."""
        for j in others:
            if self.facts[i].sha256 == self.facts[j].sha256:
                return f"the very file {self.entries[j].id}"
            pair = self.how.get(frozenset((i, j)))
            if pair:
                form = _seen_from(pair, i).name
                return f"{self.entries[j].id}, {form}, {pair.distance} bits apart, likeness {pair.likeness:.2f}"
        return f"by way of another copy, {self.entries[others[0]].id}"


def _seen_from(pair: Pair, i: int) -> Turn:
    """How picture `i` of the pair has to be seen relative to the other one.

    A pair's turn lays its first picture like its second, so that the second is the first one turned; the other way
    round, quarter turns change their direction.
    """
    turn = pair.turn
    if i == pair.first and turn.transpose and turn.across != turn.down:
        return Turn(True, turn.down, turn.across)
    return turn


def _aliases(entries: Sequence[Entry], shared: Counter[frozenset[str]]) -> Iterator[Finding]:
    sizes = Counter(entry.target for entry in entries if entry.split == "train")
    for both, count in shared.most_common():
        smaller, other = sorted(both, key=lambda name: (sizes[name], name))
        if count >= _SHARED and count >= _OVERLAP * sizes[smaller]:
            images = counted(sizes[smaller], "image")
            text = (
                f"{count} pictures of {smaller} ({images}) are in {other} ({sizes[other]}) too; if they are one class"
            )
            yield Finding("alias", f"{text}, relabel all of {smaller}", split="train", target=smaller)


def _lying(entries: Sequence[Entry], facts: Sequence[ImageStats], pairs: Sequence[Pair]) -> list[Finding]:
    """Of two copies a quarter turn apart, the one whose aspect is rare in its class."""
    wide: dict[str, list[bool]] = {}
    for entry, each in zip(entries, facts, strict=True):
        if entry.split == "train" and each.width != each.height:
            wide.setdefault(entry.target, []).append(each.width > each.height)
    by_image = {}
    for pair in pairs:
        if not pair.turn.transpose or pair.turn.across == pair.turn.down:
            continue
        for i, j in ((pair.first, pair.second), (pair.second, pair.first)):
            entry, shapes = entries[i], wide.get(entries[i].target, [])
            is_wide = facts[i].width > facts[i].height
            if entry.split != "train" or facts[i].width == facts[i].height or 2 * shapes.count(is_wide) >= len(shapes):
                continue
            degrees = {"turned by 90 degrees clockwise": "270"}.get(_seen_from(pair, i).name, "90")
            shape, other = "wide" if is_wide else "tall", entries[j].id
            text = f"is {shape}, unlike most of its class; {other} is the same picture upright"
            by_image[i] = Finding(
                "wrong_way_up", text, entry.id, "train", entry.target, (other,), action="rotate", value=degrees
            )
    return list(by_image.values())
