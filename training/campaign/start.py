"""The campaign that a command asks for, with its models chosen: begun or resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from config.errors import CheckpointError
from config.members import Member
from training.campaign.members import Campaign, named, open_folder
from training.run import auto_model


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
