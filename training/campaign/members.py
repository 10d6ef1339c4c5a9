"""The folder of a campaign: several members on the same folds, each in a run of its own, shared by several processes.

`campaign.yaml` (all settings), `request.yaml` (what workers do), `folds.csv`, `members/NAME` (ordinary runs), and what
the stages write. The folder is resumed or made here; `train_members` trains, `pipeline` does what follows.
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
        """The command line that resumes this campaign."""
        return f"python train_{self.engine}.py {words} --resume {self.folder}"


def named(
    engine: str, folder: Path, members: Sequence[Member], stop_requested: Callable[[], bool] = lambda: False
) -> Campaign:
    """The campaign in `folder`; a member without a name is called by its model."""
    each = tuple(replace(member, name=member.name or _slug(member.settings)) for member in members)
    return Campaign(engine, folder, each, tuple(members), stop_requested)


def existing(members: Sequence[Member], trains: bool = True) -> Path | None:
    """The campaign that `resume` selects, None where a new one is made; writes nothing. `ConfigError` where it was
    begun with other settings that may not replace its own, or that a command which trains nothing cannot use."""
    settings = members[0].settings
    for path in run_dir.newest_first(settings, load.CAMPAIGN) if settings.resume == "auto" else ():
        try:
            if not changes(path, members):
                return path
        except ConfigError as error:
            print(f"{path} is passed over: {error}", file=sys.stderr)
    if settings.resume in ("auto", "never"):
        return None
    path = Path(settings.resume)
    if not (path / load.CAMPAIGN).exists():
        raise ConfigError(
            f"{path}: no {load.CAMPAIGN}, so this is no campaign; leave --mode out to go on with a single run"
        )
    changed = differences(load.read_members(path / load.CAMPAIGN), members, run_dir.PLACES)
    if changed and not settings.resume_anyway:
        raise run_dir.other_settings(path, "was begun", changed)
    if changed and not trains:
        raise ConfigError(
            f"{path}: this mode trains nothing with other settings ({'; '.join(changed[:5])}); give them with --mode "
            "train or full"
        )
    return path


def new(members: Sequence[Member]) -> Path:
    """The folder that a new campaign gets."""
    settings = members[0].settings
    if settings.name:
        return settings.out / settings.name
    what = f"{len(members)}_members" if len(members) > 1 else members[0].name or _slug(settings)
    for path in sorted(settings.out.glob(f"[0-9]*_campaign_{what}")):
        if not (path / load.CAMPAIGN).exists():  # a process that started together with this one is making it
            return path
    return settings.out / f"{run_dir.next_number(settings):04d}_campaign_{what}"


def remember(campaign: Campaign, request: RunRequest) -> None:
    """Write for workers what they are to do: search, or train, perhaps after a search.

    A process that trains a single member or fold writes nothing: workers are not to be limited to that.
    """
    if request.mode != "tune" and (request.member or request.fold is not None):
        return
    mode = "tune" if request.mode == "tune" else "train"
    if RunRequest(mode, request.member, tune=request.tune) != requested(campaign.folder):
        run_dir.write_yaml(campaign.folder / _REQUEST, {"mode": mode, "member": request.member, "tune": request.tune})


def requested(folder: Path) -> RunRequest:
    """What a worker is to do; `train` without a `request.yaml`."""
    file = folder / _REQUEST
    return RunRequest(**yaml.safe_load(file.read_text())) if file.exists() else RunRequest("train")


def differences(before: Sequence[Member], after: Sequence[Member], ignored: tuple[str, ...] = ()) -> list[str]:
    """What changes the training between two lists of members, one entry each."""
    names = [[member.name for member in members] for members in (before, after)]
    if names[0] != names[1]:
        return [f"members: {', '.join(names[0]) or 'one'}, now {', '.join(names[1]) or 'one'}"]
    return [
        f"{a.name}: {changed}" if a.name else changed
        for a, b in zip(before, after, strict=True)
        for changed in run_dir.differences(a.settings, b.settings, (*_AFTERWARDS, *ignored))
    ]


def open_folder(members: Sequence[Member], may_be_new: bool) -> Path | None:
    """The campaign's folder, resumed or made; None where there is none and it may not be a new one."""
    settings, resumed = members[0].settings, existing(members, trains=may_be_new)
    if resumed:
        # Settings of the training are recorded when something is trained with them.
        if not differences(load.read_members(resumed / load.CAMPAIGN), members, run_dir.PLACES):
            record(resumed, members)
        return resumed
    if not may_be_new:
        return None
    path = new(members)
    if run_dir.begin(path, load.CAMPAIGN, load.members_yaml(members), settings, lambda: changes(path, members)):
        return path
    return open_folder(members, may_be_new)  # another process has just made it


def changes(path: Path, members: Sequence[Member]) -> list[str]:
    """How the campaign in `path` differs in its settings, one entry each; empty where it is the same."""
    file = path / load.CAMPAIGN
    return differences(load.read_members(file), members) if file.exists() else ["a single run, no campaign"]


def record(path: Path, members: Sequence[Member]) -> None:
    """Replace `campaign.yaml` where settings, weights, views or consents have changed; the old file is renamed."""
    file = path / load.CAMPAIGN
    with run_dir.run_lock(path):
        begun = load.read_members(file)
        same = list(map(_afterwards, begun)) == list(map(_afterwards, members))
        if not same or differences(begun, members, run_dir.PLACES):
            run_dir.replace_settings(file, load.members_yaml(members))


def _afterwards(member: Member) -> tuple[Any, ...]:
    return member.weight, *(getattr(member.settings, name) for name in _AFTERWARDS)


def _slug(settings: Settings) -> str:
    return re.sub(r"[^\w.-]+", "-", settings.model).strip("-.") or "model"
