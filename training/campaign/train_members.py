"""Training a campaign: every member on every fold, each by whichever process takes it first.

`queue` shares out the folds, `failures` handles those that fail, `fold` trains one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import backends
from config import load
from config import members as listed
from config.command import RunRequest
from config.errors import ConfigError, Interrupted
from config.members import Member
from config.places import atomic_write
from data import check
from training.campaign import failures, members, queue
from training.campaign.members import Campaign
from training.campaign.queue import Claim, Worklist
from training.campaign.start import open_shared
from training.report import summary
from training.run import distillation, fold, results, resume, run_dir
from training.run.outcome import FAILED, left_out
from training.run.prepare import FOLDS, refuse


def train(campaign: Campaign, request: RunRequest) -> None:
    """Train what is not trained yet, of all members or of the one that `request` names.

    Returns when all of it is done, by whichever process. Raises `Interrupted` where a stop was asked for, and all that
    is wrong with settings and images before the first fold is begun.
    """
    listed.check(campaign.members, request.member)
    able = trainable(campaign, request)
    backends.require(campaign.engine)
    if request.member:
        for folder in campaign.run(able[0]).glob("fold_*/"):
            if request.fold is None or folder.name == f"fold_{request.fold}":
                (folder / FAILED).unlink(missing_ok=True)
    shared = open_shared(
        campaign,
        lambda numbers: all(done(campaign.run(member) / f"fold_{k}") for member in able for k in numbers),
        request.fold,
    )
    engine, stop = campaign.engine, campaign.stop_requested
    jobs = [fold.job_of(engine, member.settings, shared, campaign.run(member), stop) for member in able]
    for job in jobs:
        distillation.check(job.teaching, shared.table, shared.fold_of, shared.numbers)
    _begin(campaign, jobs, shared.numbers)
    folders = [folder for job in jobs for folder in job.folds(shared.numbers)]
    work = Worklist(folders, done)
    left = work.left()
    print(f"{len(folders) - len(left)} of {len(folders)} folds are done")
    if left:
        paths = dict.fromkeys(path for job in jobs for path in (*shared.doubtful, *job.teaching.paths()))
        check.bad_images(campaign.settings.data, list(paths), shared.images)
        for claim in work.each(stop):
            try:
                _turn(campaign, jobs, shared.numbers, claim)
            except Exception as error:
                _leave_to_others(campaign, request, work, error)
                break
    if campaign.stop_requested():
        raise Interrupted(campaign.folder)
    for job in jobs:
        _sum_up(job, shared.numbers)


def _leave_to_others(campaign: Campaign, request: RunRequest, work: Worklist, error: Exception) -> None:
    """Wait for the other processes of a launcher, which would end with this one; raise the error where they leave
    something undone."""
    if not request.spread or campaign.stop_requested():
        raise error
    print(f"error: {error}; this process stops, and waits for the others, which take its folds", file=sys.stderr)
    if not work.outlasted(campaign.stop_requested):
        raise error


def _begin(campaign: Campaign, jobs: Sequence[fold.Job], numbers: Sequence[int]) -> None:
    """Write the members' settings into their runs, where something is trained with them."""
    reasons = [resume.refusal(job.folder, job.settings, numbers) for job in jobs]
    recorded = load.read_members(campaign.folder / load.CAMPAIGN)
    if members.differences(recorded, campaign.listed, run_dir.PLACES) and all(reasons):
        raise ConfigError("; ".join(reasons))
    for job, reason in zip(jobs, reasons, strict=True):
        if not reason:
            run_dir.create_or_resume(job.folder, job.settings)
            resume.apply(job.folder, job.settings)
            with run_dir.run_lock(job.folder):
                if not (job.folder / FOLDS).exists():
                    atomic_write(job.folder / FOLDS, (campaign.folder / FOLDS).read_bytes())
    members.record(campaign.folder, campaign.listed)


def done(folder: Path) -> bool:
    """Whether nothing is left to do for the fold in `folder`: it is trained, or given up."""
    return (folder / run_dir.RESULT).exists() or left_out(folder) is not None


def trained(campaign: Campaign) -> dict[str, list[Path]]:
    """The folders of the trained folds of each member that has any, in the order of their numbers."""
    files = {member.name: results.fold_files(campaign.run(member), run_dir.RESULT) for member in campaign.members}
    return {name: [path.parent for path in paths] for name, paths in files.items() if paths}


def given_up(campaign: Campaign) -> list[dict[str, Any]]:
    """The folds that were left out, with their reasons; the campaign's `failed.yaml` is brought up to date."""
    begun = [path for member in campaign.members for path in sorted(campaign.run(member).glob("fold_*/"))]
    rows = [row for path in begun if (row := left_out(path))]
    if rows:
        run_dir.write_yaml(campaign.folder / FAILED, rows)
    else:
        (campaign.folder / FAILED).unlink(missing_ok=True)
    return rows


def trainable(campaign: Campaign, request: RunRequest) -> list[Member]:
    """The members that this engine can train; those that it cannot are left to the other one."""
    wanted = [member for member in campaign.members if request.member in ("", member.name)]
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


def _turn(campaign: Campaign, jobs: Sequence[fold.Job], numbers: Sequence[int], claim: Claim) -> None:
    """Train the fold of a claim, unless another process takes it over meanwhile."""
    job = next(job for job in jobs if job.folder == claim.folder.parent)
    number = int(claim.folder.name.removeprefix("fold_"))
    with claim:
        print(f"{job.folder.name}: fold {number}")
        try:
            failures.attempt(replace(job, stop_requested=lambda: claim.lost or campaign.stop_requested()), number)
        except Interrupted:
            if not claim.lost:
                raise Interrupted(campaign.folder) from None
            print(f"{claim.folder}: another machine has taken it over, as this one did not answer")
    _sum_up(job, numbers)


def _sum_up(job: fold.Job, numbers: Sequence[int]) -> None:
    """Write the run's summary, plots and report once all its folds are done, unless they cover these already."""
    if not all(done(folder) for folder in job.folds(numbers)):
        return
    with queue.alone(job.folder, job.stop_requested) as claim:
        trained = {int(path.parent.name.removeprefix("fold_")) for path in job.folder.glob(f"fold_*/{run_dir.RESULT}")}
        if claim and trained and trained != summary.reported_folds(job.folder):
            summary.sum_up(job.folder, job.settings.stopping.metric)
