"""A member of an ensemble, as its file lists it: artefact, weight, run options. `infer.member` opens it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ensemble.options import NONE_GIVEN, RunOptions


class Member(BaseModel):
    """One line of an ensemble: the artefact and its weight.

    `runtime` None leaves the choice to `infer.runtimes`; `group` names the run whose folds belong together;
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
