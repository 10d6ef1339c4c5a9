"""A member of an ensemble, as its file lists it: artefact, weight, run options. `infer.member` opens it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from config.errors import ConfigError
from ensemble.options import NONE_GIVEN, RunOptions


class Member(BaseModel):
    """One line of an ensemble: where the artefact is and what its answer counts.

    `runtime` None leaves the choice to `infer.predictors`; `group` names the run whose folds belong together;
    `temperature` divides the logits before they mix; `options` are how this one is run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    runtime: str | None = None
    group: str = ""
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    options: RunOptions = NONE_GIVEN

    def __str__(self) -> str:
        return f"{self.path}@{self.runtime}" if self.runtime else str(self.path)


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
