"""Which of a member's classes each label of a data set means: by name, alias, or ImageNet's synsets and names."""

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
        raise DataError(_unknown(unknown, len(distinct), class_names, source))
    return {name: number for name, number in matched.items() if number is not None}


def _unknown(unknown: Sequence[str], count: int, class_names: Sequence[str], source: str) -> str:
    shown = ", ".join(map(repr, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
    near = csvfile.near(unknown[0], list(class_names))
    known = f"{len(class_names)} classes: " + ", ".join(map(repr, class_names[:_SHOWN]))
    known += ", ..." if len(class_names) > _SHOWN else ""
    remedy = "rename them" if len(unknown) == count else "rename them, or name the known ones as --data.classes"
    return (
        f"{source}: {len(unknown)} of its {count} classes are unknown to the member ({shown}{near}); "
        f"it knows {known}; {remedy}"
    )
