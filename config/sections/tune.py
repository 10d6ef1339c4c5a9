"""The settings about the search for settings: how many trials, how they are judged, what they may change."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from config.sections.base import CHECK, Section


class Search(Section):
    """Where a setting is searched: from `low` to `high`, by orders of magnitude with `log`, or among `choices`."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[str | None, ...] | None = None


def _ranges(space: dict[str, Search | None]) -> dict[str, Search | None]:
    for name, search in space.items():
        if search is not None and not _complete(search):
            raise PydanticCustomError(
                CHECK,
                "{name} with low < high (0 < low with log: true), or with a list of choices",
                {"name": name},
            )
    return space


def _complete(search: Search) -> bool:
    if search.low is None or search.high is None:
        return search.low is None and search.high is None and not search.log and bool(search.choices)
    return search.choices is None and search.low < search.high and (search.low > 0 or not search.log)


class Tune(Section):
    """The search for better settings (--mode tune, --mode full --tune); needs the extra `tune`."""

    trials: int = Field(default=30, ge=1, description="Trainings to try, those that were cut short included.")
    pruner: Literal["hyperband", "median", "none"] = Field(
        default="hyperband", description="What cuts a hopeless training short, by its score after each epoch."
    )
    storage: str | None = Field(
        default=None,
        min_length=1,
        description="URL of the data base that keeps the trials, such as postgresql://HOST/NAME where several machines"
        " search together (extra `postgres`; $VARIABLES are filled in); null: an SQLite file in the campaign's folder.",
    )
    fold: int = Field(default=0, ge=0, description="The fold that judges the trials.")
    proxy_epochs: int | None = Field(
        default=None, ge=1, description="Epochs of a trial; null is train.epochs, and other counts of epochs follow it."
    )
    proxy_image_size: int | None = Field(
        default=None, ge=16, le=4096, description="Side of a trial's input in pixels; null is data.image_size."
    )
    proxy_per_class: int | None = Field(
        default=None,
        ge=2,
        description="Images of a class in a trial, drawn by the seed from all folds; null takes all.",
    )
    space: Annotated[dict[str, Search | None], AfterValidator(_ranges)] = Field(
        default={
            "optim.lr": Search(low=1e-5, high=1e-3, log=True),
            "optim.weight_decay": Search(low=1e-3, high=0.3, log=True),
            "loss.label_smoothing": Search(low=0.0, high=0.2),
        },
        description="What is searched: setting names, each with {low, high} and perhaps log: true, or {choices: [...]};"
        " null takes a setting of the recipe's out.",
    )
