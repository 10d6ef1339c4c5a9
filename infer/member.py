"""Opening members: their runtimes are chosen and their options checked before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemble import options, views
from ensemble.ensemble_file import Ensemble
from ensemble.member import Member
from ensemble.options import NONE_GIVEN, RunOptions
from infer import runtimes
from infer.runtimes import RUNTIMES, Predictor
from models import pretrained

_KEYWORDS = {"provider": "providers", "compute_unit": "compute_units"}  # as the runtimes call them


def parse(text: str) -> Member:
    """`PATH` or `PATH@RUNTIME`, as on the command line; PATH may be a model's name or a weights file.

    Of these a checkpoint is made in the cache folder (see `models.pretrained`).
    """
    path, at, runtime = text.rpartition("@")
    if at and path and (runtime in RUNTIMES or not (Path(text).exists() or pretrained.is_source(text))):
        return Member(path=_artefact(path), runtime=runtime)
    return Member(path=_artefact(text))


def ensemble_of(members: Sequence[str], names: Sequence[str] = ("original",)) -> Ensemble:
    """Equal weights for members given as `PATH` or `PATH@RUNTIME`, with the views or presets `names`."""
    return Ensemble(members=tuple(map(parse, members)), views=views.expand(names))


def _artefact(text: str) -> Path:
    return pretrained.checkpoint(text) if pretrained.is_source(text) else Path(text)


@dataclass(frozen=True)
class Opened:
    """A member with the predictor that answers for it."""

    member: Member
    predictor: Predictor


def choose_runtimes(members: Sequence[Member], shared: RunOptions = NONE_GIVEN) -> list[str]:
    """The runtime of each member, after paths, runtimes and options of all were checked; nothing is opened."""
    found = [runtimes.choose(member.path, member.runtime) for member in members]
    for member, runtime in zip(members, found, strict=True):
        options.for_member(str(member), runtime, member.options, shared)
    options.check_used(shared, found)
    return found


def open_one(member: Member, shared: RunOptions = NONE_GIVEN) -> Opened:
    """Open one member, with its own options before the `shared` ones."""
    runtime = runtimes.choose(member.path, member.runtime)
    given = options.for_member(str(member), runtime, member.options, shared)
    named = {_KEYWORDS.get(key, key): value for key, value in given.items()}
    return Opened(member, runtimes.open(member.path, member.runtime, **named))


def close_all(opened: Sequence[Opened]) -> None:
    """Free all predictors."""
    for one in opened:
        one.predictor.close()
