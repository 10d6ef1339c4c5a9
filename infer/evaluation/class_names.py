"""Maps the labels of a data set to a member's classes: by name, alias, or ImageNet's synsets and names."""

from __future__ import annotations

from collections.abc import Sequence

from config.errors import DataError
from data import csvfile
from ensemble.aliases import Groups
from models import imagenet

_SHOWN = 3


def match(labels: Sequence[str], class_names: Sequence[str], aliases: Groups, source: str) -> dict[str, int]:
    """The number in `class_names` of each of the distinct `labels` of the data set `source`.

    A label is a class name, an alias of one, or, for a member that knows ImageNet-1k's classes, a synset or one of the
    class's names. Raises `DataError` that names labels which are none of these.
    """
    number_of = {name: number for number, name in enumerate(class_names)}
    for group in aliases:
        known = next((number_of[name] for name in group if name in number_of), None)
        number_of |= {name: known for name in group if known is not None and name not in number_of}
    imagenets = imagenet.places(class_names)
    distinct = sorted(set(labels))
    matched = {name: number_of.get(name, imagenets.get(imagenet.key(name))) for name in distinct}
    unknown = [name for name in distinct if matched[name] is None]
    if unknown:
        near = csvfile.near(unknown[0], list(class_names))
        remedy = "rename them"
        if len(unknown) < len(distinct):
            remedy += ", or name the known ones as --data.classes"
        raise DataError(
            f"{source}: {len(unknown)} of its {len(distinct)} classes are unknown to the member "
            f"({_some(unknown)}{near}); it knows {len(class_names)} classes: {_some(class_names)}; {remedy}"
        )
    return {name: number for name, number in matched.items() if number is not None}


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
