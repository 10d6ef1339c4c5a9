"""The folder of a campaign: several members on the same folds, each in a run of its own, shared by several processes.

`campaign.yaml` (all settings), `request.yaml` (what workers do), `folds.csv`, `members/NAME` (runs as ever), and what
the stages make of them. It is found again or made here; who trains what stands in `train_members`, what follows the
training in `pipeline`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from config import load
from config.command import RunRequest
from config.errors import ConfigError
from config.members import Member
from config.schema import Settings
from training.run import run_dir

_RUNS = "members"
_REQUEST = "request.yaml"
# Settings that the training does not depend on.
_AFTERWARDS = ("tta", "tune", "ensemble")


@dataclass(frozen=True)
class Campaign:
    """A campaign's folder, its members, all of them named, and the engine that this process has. `listed` are the
    members as `campaign.yaml` has them, without what a search found."""

    engine: str
    folder: Path
    members: tuple[Member, ...]
    listed: tuple[Member, ...]
    stop_requested: Callable[[], bool]

    @property
    def settings(self) -> Settings:
        """Settings that are the same for all members, such as `data.root`."""
        return self.members[0].settings

    def run(self, member: Member) -> Path:
        """The run of a member."""
        return self.folder / _RUNS / member.name

    def command(self, words: str) -> str:
        """What to type to go on with this campaign."""
        return f"python train_{self.engine}.py {words} --resume {self.folder}"


def named(
    engine: str, folder: Path, members: Sequence[Member], stop_requested: Callable[[], bool] = lambda: False
) -> Campaign:
    """The campaign in `folder`; a member without a name is called by its model."""
    each = tuple(replace(member, name=member.name or _slug(member.settings)) for member in members)
    return Campaign(engine, folder, each, tuple(members), stop_requested)


def existing(members: Sequence[Member]) -> Path | None:
    """The campaign that `resume` goes on with, None where a new one is made; writes nothing. `ConfigError` as
    `begin`."""
    resume = members[0].settings.resume
    if resume not in ("auto", "never"):
        return _begun(Path(resume), members, trains=True)
    return _newest(members) if resume == "auto" else None


def new(members: Sequence[Member]) -> Path:
    """The folder that a new campaign gets."""
    settings = members[0].settings
    return settings.out / (settings.name or _name(members))


def remember(campaign: Campaign, wish: RunRequest) -> None:
    """Leave for workers what they are to do: search, or train, perhaps after a search.

    A process that trains a part leaves nothing: the others are not to train that part alone.
    """
    if wish.mode != "tune" and (wish.member or wish.fold is not None):
        return
    mode = "tune" if wish.mode == "tune" else "train"
    if RunRequest(mode, wish.member, tune=wish.tune) != requested(campaign.folder):
        run_dir.write_yaml(campaign.folder / _REQUEST, {"mode": mode, "member": wish.member, "tune": wish.tune})


def requested(folder: Path) -> RunRequest:
    """What a worker is to do: `train` where nothing else was left."""
    file = folder / _REQUEST
    return RunRequest(**yaml.safe_load(file.read_text())) if file.exists() else RunRequest("train")


def differences(one: Sequence[Member], other: Sequence[Member], ignored: tuple[str, ...] = ()) -> list[str]:
    """What changes the training between two lists of members, one entry each."""
    names = [member.name for member in one], [member.name for member in other]
    if names[0] != names[1]:
        return [f"members: {', '.join(names[0]) or 'one'}, now {', '.join(names[1]) or 'one'}"]
    return [
        f"{a.name}: {changed}" if a.name else changed
        for a, b in zip(one, other, strict=True)
        for changed in run_dir.differences(a.settings, b.settings, (*_AFTERWARDS, *ignored))
    ]


def open_folder(members: Sequence[Member], may_be_new: bool) -> Path | None:
    """The campaign's folder, resumed or made; None where there is none and it may not be a new one."""
    settings = members[0].settings
    if settings.resume not in ("auto", "never"):
        return _updated(_begun(Path(settings.resume), members, trains=may_be_new), members)
    found = _newest(members) if settings.resume == "auto" else None
    if found:
        return _updated(found, members)
    if not may_be_new:
        return None
    path = new(members)
    path.mkdir(parents=True, exist_ok=True)
    with run_dir.run_lock(path):
        fresh = not any((path / name).exists() for name in (load.CAMPAIGN, load.RUN))
        if fresh:
            run_dir.write_text(path / load.CAMPAIGN, load.members_yaml(members))
    if fresh:
        return path
    if settings.name and (settings.resume == "never" or not _fits(path, members)):
        raise ConfigError(f"{path}: another run has this name; choose another --name, or go on with --resume {path}")
    return open_folder(members, may_be_new)  # another process has just made it


def _newest(members: Sequence[Member]) -> Path | None:
    settings = members[0].settings
    found = [path.parent for path in settings.out.glob(f"{settings.name or '*'}/{load.CAMPAIGN}")]
    for path in sorted(found, key=lambda place: (run_dir.number_of(place), place.name), reverse=True):
        try:
            if _fits(path, members):
                return path
        except ConfigError as error:
            print(f"{path} is passed over: {error}", file=sys.stderr)
    return None


def _fits(path: Path, members: Sequence[Member]) -> bool:
    file = path / load.CAMPAIGN
    return file.exists() and not differences(load.read_members(file), members)


def training_changed(campaign: Campaign) -> list[str]:
    """What the campaign's members would be trained with and `campaign.yaml` does not say."""
    return differences(load.read_members(campaign.folder / load.CAMPAIGN), campaign.listed, run_dir.PLACES)


def record(campaign: Campaign) -> None:
    """Write `campaign.yaml` anew where the members' settings are others by now; the old file stays."""
    _record(campaign.folder, campaign.listed)


def _begun(path: Path, members: Sequence[Member], trains: bool) -> Path:
    file = path / load.CAMPAIGN
    if not file.exists():
        raise ConfigError(
            f"{path}: no {load.CAMPAIGN}, so this is no campaign; leave --mode out to go on with a single run"
        )
    changed = differences(load.read_members(file), members, run_dir.PLACES)
    if changed and not members[0].settings.resume_anyway:
        raise run_dir.other_settings(path, "was begun", changed)
    if changed and not trains:
        raise ConfigError(
            f"{path}: this mode trains nothing with other settings ({'; '.join(changed[:5])}); give them with --mode "
            "train or full"
        )
    return path


def _updated(path: Path, members: Sequence[Member]) -> Path:
    """The folder, after its `campaign.yaml` took over weights, views or consents that are new. Settings of the training
    are taken over when something is trained with them."""
    if not differences(load.read_members(path / load.CAMPAIGN), members, run_dir.PLACES):
        _record(path, members)
    return path


def _record(path: Path, members: Sequence[Member]) -> None:
    file = path / load.CAMPAIGN
    with run_dir.run_lock(path):
        begun = load.read_members(file)
        same = list(map(_afterwards, begun)) == list(map(_afterwards, members))
        if not same or differences(begun, members, run_dir.PLACES):
            file.rename(path / f"campaign_{len(list(path.glob('campaign*.yaml')))}.yaml")
            run_dir.write_text(file, load.members_yaml(members))


def _afterwards(member: Member) -> tuple[Any, ...]:
    return member.weight, *(getattr(member.settings, name) for name in _AFTERWARDS)


def _name(members: Sequence[Member]) -> str:
    settings = members[0].settings
    what = f"{len(members)}_members" if len(members) > 1 else members[0].name or _slug(settings)
    for path in sorted(settings.out.glob(f"[0-9]*_campaign_{what}")):
        if not (path / load.CAMPAIGN).exists():  # a process that started together with this one is making it
            return path.name
    number = 1 + max((run_dir.number_of(path) for path in settings.out.glob("*")), default=0)
    return f"{number:04d}_campaign_{what}"


def _slug(settings: Settings) -> str:
    return re.sub(r"[^\w.-]+", "-", settings.model).strip("-.") or "model"
