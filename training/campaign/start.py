"""The campaign of a command, new or resumed: its models chosen, its images audited, its folds drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from config import load
from config.errors import CheckpointError
from config.members import Member
from data.audit import actions
from data.cache.images import Images
from models import auto
from training.campaign.members import Campaign, changes, named, open_folder
from training.run import audit, auto_model, results, run_dir
from training.run.prepare import FOLDS, SharedData, describe, split


def begin(
    engine: str, members: Sequence[Member], stop_requested: Callable[[], bool], may_be_new: bool = True
) -> Campaign:
    """The campaign that the members' settings ask for: resumed as `resume` says, or fresh; `campaign.yaml` inside.

    `auto` resumes the newest one of the same settings, `never` always makes a new folder, a path resumes that one.
    Raises `ConfigError` where a name is taken, or where a resumed one was begun with other settings, and
    `CheckpointError` where there is none and a new one is not allowed.
    """
    members, chosen = with_models(engine, members)
    folder = open_folder(members, may_be_new)
    if folder is None:
        raise CheckpointError(
            f"{members[0].settings.out}: holds no campaign of these settings; first: python train_{engine}.py "
            "--mode train with the same settings, or name one by --resume PATH"
        )
    auto_model.keep(folder, chosen)
    return named(engine, folder, members, stop_requested)


def with_models(engine: str, members: Sequence[Member]) -> tuple[list[Member], dict[str, dict[str, Any]]]:
    """The members, each with a model in place of auto, and the choices by member: those of an earlier start of the same
    command, where it can be resumed."""
    settings = members[0].settings
    for path in run_dir.newest_first(settings, load.CAMPAIGN) if settings.resume == "auto" else ():
        if (path / auto_model.FILE).exists():
            chosen = results.read_yaml(path / auto_model.FILE)
            begun = [_with_model(member, chosen.get(member.name, {})) for member in members]
            if not changes(path, begun):
                print(f"models: chosen when {path} was started")
                return begun, chosen
    resolved = {member.name: auto_model.resolve(member.settings, engine) for member in members}
    chosen = {name: dict(choice.values) for name, choice in resolved.items() if choice.values}
    return [replace(member, settings=resolved[member.name].settings) for member in members], chosen


def _with_model(member: Member, chosen: Mapping[str, Any]) -> Member:
    """A member with what was chosen for it, where its model is auto."""
    if member.settings.model != auto.AUTO:
        return member
    values = auto_model.not_set(member.settings, chosen)
    return replace(member, settings=load.changed(member.settings, values, "model auto"))


def open_shared(
    campaign: Campaign, ended: Callable[[list[int]], bool] = lambda _: False, only: int | None = None
) -> SharedData:
    """Read the images' table, audit it, and read the folds, which are drawn and written where they are missing.

    No image is read where `ended` returns True for the folds' numbers. With `only` that fold alone is to be trained.
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
