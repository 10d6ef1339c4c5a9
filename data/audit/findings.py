"""What a finding is, which kinds there are, and the order in which people see them. Who finds them stands beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Action = Literal["", "drop", "relabel", "group", "rotate"]
ACTIONS: tuple[Action, ...] = ("drop", "relabel", "group", "rotate")

# Every kind, the gravest first, with what it means.
KINDS = {
    "unreadable": "cannot be decoded",
    "truncated": "ends before its last pixel",
    "empty": "has no bytes",
    "label_conflict": "one picture under two labels",
    "label_error": "a trained model is sure of another label",
    "leak": "a picture of the training set is in the test set too",
    "exact_duplicate": "the same file content twice",
    "near_duplicate": "the same picture in another form",
    "wrong_way_up": "lies on its side beside a copy that does not",
    "alias": "two classes that may be one",
    "confused": "two classes that a trained model mixes up",
    "small_class": "a class of few images",
    "shift": "training and test images differ",
    "near_blank": "one colour almost everywhere",
    "blurry": "edges far softer than those of the other images",
    "dark": "hardly anything brighter than black",
    "wrong_extension": "the file's name says another format",
    "extreme_aspect": "a long strip",
    "extreme_size": "far smaller or larger than the others",
    "animated": "only the first frame is used",
    "cmyk": "colours of print, converted to RGB",
    "grey": "no colour",
    "exif_rotated": "turned on reading, as its EXIF says",
}


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing, about an image or, where `id` is "", about a class or the data set.

    `split` is train, test or "". `related` are the IDs of other images that it is about. `action` is what is proposed,
    "" where nothing has to be done, `value` what it needs: the new label, the group's name, or degrees clockwise.
    """

    kind: str
    detail: str
    id: str = ""
    split: str = ""
    target: str = ""
    related: tuple[str, ...] = ()
    action: Action = ""
    value: str = ""


def ordered(findings: list[Finding]) -> list[Finding]:
    """The gravest kinds first; within a kind as they were found."""
    kinds = list(KINDS)
    return sorted(findings, key=lambda finding: kinds.index(finding.kind))


def counts(findings: list[Finding]) -> dict[str, int]:
    """How many findings there are of each kind that occurs, the gravest first."""
    number = {kind: sum(finding.kind == kind for finding in findings) for kind in KINDS}
    return {kind: count for kind, count in number.items() if count}
