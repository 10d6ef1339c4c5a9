"""Training a campaign: every member on every fold, each by whichever process takes it first.

The list that they share is `queue`; what is done about a fold that fails, `failures`; one fold, `fold`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import backends
from config import members as listed
from config.command import RunRequest
from config.errors import ConfigError, Interrupted
from config.members import Member
from config.schema import Settings
from data import check
from models.registry import ModelSpec
from training.campaign import failures, members, queue
from training.campaign.members import Campaign
from training.campaign.queue import Claim, Worklist
from training.campaign.shared_data import SharedData, open_shared
from training.report import summary
from training.run import distillation, fold, resume, run_dir
from training.run.failures import left_out
from training.run.prepare import FOLDS, card_of, prepare, refuse


@dataclass(frozen=True)
class ResolvedMember:
    """A member whose settings are resolved against model and data, with its run's folder."""

    member: Member
    folder: Path
    settings: Settings
    spec: ModelSpec
    teaching: distillation.DistillationData

    def folds(self, numbers: Sequence[int]) -> list[Path]:
        """The folders of its folds."""
        return [self.folder / f"fold_{k}" for k in numbers]


def train(campaign: Campaign, wish: RunRequest) -> None:
    """Train what is not trained yet, of all members or of the one that `wish` names.

    Returns when all of it is done, by whichever process. Raises `Interrupted` where a stop was asked for, and all that
    is wrong with settings and images before the first fold is begun.
    """
    listed.check(campaign.members, wish.member)
    able = trainable(campaign, wish)
    backends.require(campaign.engine)
    if wish.member:
        for place in campaign.run(able[0]).glob("fold_*/"):
            if wish.fold is None or place.name == f"fold_{wish.fold}":
                failures.forget(place)
    shared = open_shared(
        campaign,
        lambda numbers: all(done(campaign.run(member) / f"fold_{k}") for member in able for k in numbers),
        wish.fold,
    )
    team = [_ready(campaign, member, shared) for member in able]
    _begin(campaign, team, shared.numbers)
    folders = [folder for one in team for folder in one.folds(shared.numbers)]
    work = Worklist(folders, done)
    left = work.left()
    print(f"{len(folders) - len(left)} of {len(folders)} folds are done")
    if left:
        _look_at_images(team, shared)
        for claim in work.each(campaign.stop_requested):
            try:
                _turn(campaign, team, shared, claim)
            except Exception as error:
                _leave_to_others(campaign, wish, work, error)
                break
    if campaign.stop_requested():
        raise Interrupted(campaign.folder)
    for one in team:
        _sum_up(campaign, one, shared)


def _leave_to_others(campaign: Campaign, wish: RunRequest, work: Worklist, error: Exception) -> None:
    """A process of a launcher that cannot train on waits for the others, as its end would end theirs; the error is
    raised where they leave something undone."""
    if not wish.spread or campaign.stop_requested():
        raise error
    print(f"error: {error}; this process stops, and waits for the others, which take its folds", file=sys.stderr)
    if not work.outlasted(campaign.stop_requested):
        raise error


def _begin(campaign: Campaign, team: Sequence[ResolvedMember], numbers: Sequence[int]) -> None:
    """Make the members' settings those of their runs, where something is trained with them."""
    reasons = {one.member.name: resume.refusal(one.folder, one.settings, numbers) for one in team}
    if members.training_changed(campaign) and all(reasons.values()):
        raise ConfigError("; ".join(reasons.values()))
    for one in team:
        if not reasons[one.member.name]:
            run_dir.create_or_resume(one.folder, one.settings)
            resume.apply(one.folder, one.settings)
            with run_dir.run_lock(one.folder):
                if not (one.folder / FOLDS).exists():
                    (one.folder / FOLDS).write_bytes((campaign.folder / FOLDS).read_bytes())
    members.record(campaign)


def done(folder: Path) -> bool:
    """Whether nothing is left to do for the fold in `folder`: it is trained, or given up."""
    return (folder / run_dir.RESULT).exists() or left_out(folder) is not None


def trained(campaign: Campaign) -> dict[str, list[Path]]:
    """The folders of the trained folds of each member that has any, in the order of their numbers."""
    found = {}
    for member in campaign.members:
        folds = [path.parent for path in campaign.run(member).glob(f"fold_*/{run_dir.RESULT}")]
        if folds:
            found[member.name] = sorted(folds, key=lambda path: (len(path.name), path.name))
    return found


def given_up(campaign: Campaign) -> list[dict[str, Any]]:
    """The folds that were left out, with their reasons, which `failed.yaml` of the campaign then holds too."""
    begun = [path for member in campaign.members for path in sorted(campaign.run(member).glob("fold_*/"))]
    return failures.collect(campaign.folder, begun)


def trainable(campaign: Campaign, wish: RunRequest) -> list[Member]:
    """The members that this engine can train; those that it cannot are left to the other one."""
    wanted = [member for member in campaign.members if wish.member in ("", member.name)]
    able, reasons = [], list[str]()
    for member in wanted:
        try:
            refuse(member.settings, campaign.engine)
            able.append(member)
        except ConfigError as error:
            reasons.append(f"{member.name}: {error}")
    if not able:
        raise ConfigError("; ".join(reasons))
    for reason in reasons:
        print(f"left to another engine: {reason}")
    return able


def _ready(campaign: Campaign, member: Member, shared: SharedData) -> ResolvedMember:
    settings, spec, _ = prepare(member.settings, shared.table)
    teaching = distillation.read(settings, shared.table)
    distillation.check(teaching, shared.table, shared.fold_of, shared.numbers)
    return ResolvedMember(member, campaign.run(member), settings, spec, teaching)


def _look_at_images(team: Sequence[ResolvedMember], shared: SharedData) -> None:
    if team:
        paths = dict.fromkeys(path for one in team for path in (*shared.doubtful, *one.teaching.paths()))
        check.bad_images(team[0].settings.data, list(paths), shared.images)


def _turn(campaign: Campaign, team: Sequence[ResolvedMember], shared: SharedData, claim: Claim) -> None:
    """Train the fold of a claim; where another process has taken it over meanwhile, leave it to that one."""
    one = next(one for one in team if one.folder == claim.folder.parent)
    number = int(claim.folder.name.removeprefix("fold_"))
    with claim:
        print(f"{one.member.name}: fold {number}")
        try:
            failures.attempt(_job(campaign, one, shared, lambda: claim.lost or campaign.stop_requested()), number)
        except Interrupted:
            if not claim.lost:
                raise Interrupted(campaign.folder) from None
            print(f"{claim.folder}: another machine has taken it over, as this one did not answer")
    if all(done(folder) for folder in one.folds(shared.numbers)):
        _sum_up(campaign, one, shared)


def _job(campaign: Campaign, one: ResolvedMember, shared: SharedData, stop_requested: Callable[[], bool]) -> fold.Job:
    settings, spec = one.settings, one.spec
    card = card_of(settings, spec, shared.table, campaign.engine)
    return fold.Job(
        campaign.engine,
        settings,
        spec,
        card,
        shared.table,
        shared.images,
        shared.fold_of,
        one.teaching,
        one.folder,
        stop_requested,
    )


def _sum_up(campaign: Campaign, one: ResolvedMember, shared: SharedData) -> None:
    """The run's summary, plots and report, where they do not tell of all trained folds yet."""
    folders = one.folds(shared.numbers)
    if not all(done(folder) for folder in folders):
        return
    with queue.alone(one.folder, campaign.stop_requested) as claim:
        trained = {int(path.parent.name.removeprefix("fold_")) for path in one.folder.glob(f"fold_*/{run_dir.RESULT}")}
        file = one.folder / run_dir.FINISHED
        told = {row["fold"] for row in yaml.safe_load(file.read_text())["folds"]} if file.exists() else set()
        if claim and trained and trained != told:
            summary.sum_up(one.folder, one.settings.stopping.metric)
