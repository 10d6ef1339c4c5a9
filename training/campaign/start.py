"""The campaign that a command asks for, begun or resumed: its models chosen, its images read and audited, its folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from config.errors import CheckpointError
from config.members import Member
from data.audit import actions
from data.cache.images import Images
from training.campaign.members import Campaign, named, open_folder
from training.run import audit, auto_model
from training.run.prepare import FOLDS, SharedData, describe, split


def begin(
    engine: str, members: Sequence[Member], stop_requested: Callable[[], bool], may_be_new: bool = True
) -> Campaign:
    """The campaign that the members' settings ask for: resumed as `resume` says, or fresh; `campaign.yaml` inside.

    `auto` takes the newest one of the same settings, `never` always makes a new folder, a path goes on with that one.
    Raises `ConfigError` where a name is taken, or where a resumed one was begun with other settings, and
    `CheckpointError` where there is none and it may not be a new one.
    """
    members = with_models(engine, members)
    folder = open_folder(members, may_be_new)
    if folder is None:
        raise CheckpointError(
            f"{members[0].settings.out}: holds no campaign of these settings; first: python train_{engine}.py "
            "--mode train with the same settings, or name one by --resume PATH"
        )
    return named(engine, folder, members, stop_requested)


def with_models(engine: str, members: Sequence[Member]) -> list[Member]:
    """The members, each with a model in place of auto."""
    return [replace(member, settings=auto_model.resolve(member.settings, engine).settings) for member in members]


def open_shared(
    campaign: Campaign, ended: Callable[[list[int]], bool] = lambda _: False, only: int | None = None
) -> SharedData:
    """Read the images' table, audit it, and read the folds, which are drawn and kept where they are not there yet.

    Where `ended` says of the folds' numbers that nothing is left to do, no image is looked at. With `only` that fold
    alone is to be trained.
    """
    settings, folder = campaign.settings, campaign.folder
    if only is not None:
        settings = settings.model_copy(update={"folds": settings.folds.model_copy(update={"train": (only,)})})
    table = actions.load(settings.data).table
    print(*describe(settings, table), sep="\n")
    images = Images.of(settings.data, table.turns)
    if (folder / FOLDS).exists():
        shared = split(settings, table, images, folder)
        if ended(shared.numbers):
            return shared
    table, doubtful = audit.before(settings, table, campaign.stop_requested, lambda: folder)
    return replace(split(settings, table, images, folder), doubtful=doubtful)
