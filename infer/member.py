"""A member: an artefact with its weight in an ensemble, opened together with the others and checked against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from config.errors import ConfigError
from infer import options, predictors
from infer.options import NONE_GIVEN, RunOptions
from infer.predictors import RUNTIMES, Predictor
from models import pretrained

_KEYWORDS = {"provider": "providers", "compute_unit": "compute_units"}  # as the predictors call them


class Member(BaseModel):
    """One line of an ensemble: where the artefact is and what its answer counts.

    `runtime` None leaves the choice to `predictors.open`; `group` names the run whose folds belong together;
    `temperature` divides the logits before they mix; `options` are how this one is run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    runtime: str | None = None
    group: str = ""
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    options: RunOptions = NONE_GIVEN

    @staticmethod
    def parse(text: str) -> Member:
        """`PATH` or `PATH@RUNTIME`, as on the command line; PATH may be a model's name or a weights file.

        Of these a checkpoint is made in the cache folder (see `models.pretrained`).
        """
        path, at, runtime = text.rpartition("@")
        if at and path and (runtime in RUNTIMES or not (Path(text).exists() or pretrained.is_source(text))):
            return Member(path=_artefact(path), runtime=runtime)
        return Member(path=_artefact(text))

    def __str__(self) -> str:
        return f"{self.path}@{self.runtime}" if self.runtime else str(self.path)


def _artefact(text: str) -> Path:
    return pretrained.checkpoint(text) if pretrained.is_source(text) else Path(text)


@dataclass(frozen=True)
class Opened:
    """A member with the predictor that answers for it."""

    member: Member
    predictor: Predictor


def runtimes(members: Sequence[Member], shared: RunOptions = NONE_GIVEN) -> list[str]:
    """The runtime of each member, after paths, runtimes and options of all were checked; nothing is opened."""
    found = [predictors.choose(member.path, member.runtime) for member in members]
    for member, runtime in zip(members, found, strict=True):
        options.for_member(str(member), runtime, member.options, shared)
    options.check_used(shared, found)
    return found


def open_one(member: Member, shared: RunOptions = NONE_GIVEN) -> Opened:
    """Open one member, with its own options before the `shared` ones."""
    runtime = predictors.choose(member.path, member.runtime)
    given = options.for_member(str(member), runtime, member.options, shared)
    named = {_KEYWORDS.get(key, key): value for key, value in given.items()}
    return Opened(member, predictors.open(member.path, member.runtime, **named))


def close_all(opened: Sequence[Opened]) -> None:
    """Free all predictors."""
    for one in opened:
        one.predictor.close()


def check_classes(named: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    """`ConfigError`, naming two members and the first difference, unless all have the same class list."""
    first, classes = named[0]
    for name, other in named[1:]:
        if other == classes:
            continue
        if sorted(other) == sorted(classes):
            difference = "the same classes in another order"
        elif len(other) != len(classes):
            difference = f"{len(other)} classes where the other has {len(classes)}"
        else:
            ours, theirs = next((a, b) for a, b in zip(classes, other, strict=True) if a != b)
            difference = f"class {theirs!r} where the other has {ours!r}"
        raise ConfigError(f"{name}: has {difference} ({first}); only members trained on the same classes can mix")
