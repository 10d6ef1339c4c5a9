"""The settings about a campaign's ensemble: how the members' answers become one. `python -m infer fit` has more."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from config.sections.base import Probability, Section, distinct


class Ensemble(Section):
    """How a campaign's members are put together (--mode fit and full); fitted on out-of-fold answers."""

    method: Literal["convex", "equal", "fixed", "greedy", "stacking"] = Field(
        default="convex",
        description="How weights are found: optimum of the log loss (convex), all equal, the members' `weight` (fixed),"
        " greedy selection by stopping.metric (Caruana 2004), or a logistic regression on the logits (stacking).",
    )
    combine: Literal["probabilities", "logits", "ranks"] = Field(
        default="probabilities", description="What is averaged."
    )
    bags: int = Field(default=0, ge=0, description="Average the weights over so many bootstrap samples; 0 is off.")
    soften: Probability = Field(default=0.0, description="Share by which the weights are moved towards equal ones.")
    calibration: Annotated[
        tuple[Literal["none", "temperature", "vector", "isotonic"], ...], Field(min_length=1), AfterValidator(distinct)
    ] = Field(default=("temperature",), description="Of several, the one with the lowest nested log loss is kept.")
    clip: bool = Field(default=False, description="Fit a lowest probability too, for log loss.")
    positive: str | None = Field(
        default=None,
        min_length=1,
        description="Of two classes the one whose probability a submission with one column of fractions holds; null is"
        " the class that the column is named after, else the one that sorts last.",
    )
