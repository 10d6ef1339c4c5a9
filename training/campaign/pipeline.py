"""The stages of a campaign: audit, train, fit, predict, report, each by itself or all in order (`full`).

A stage finds what the stages before it left. What it made from the same inputs is not made again; what it made from
other ones is renamed, never overwritten. `train_members` trains, `tune` searches for settings, `infer` predicts.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from config import members as listed
from config.command import SHARED_MODES, RunRequest
from config.errors import CheckpointError, ConfigError, DataError, Interrupted
from config.places import atomic_write
from config.text import counted
from data import sources
from data.audit import command as look
from data.audit import page
from data.audit import table as audit_table
from ensemble import ensemble_file, fit, views
from ensemble.oof import oof_files
from ensemble.weighting import average
from infer import views_oof
from infer.io import prior, submission, submission_writer, summary
from infer.io.inputs import of_paths
from infer.runner import Runner
from training import report
from training.campaign import preflight, queue, train_members, trial, tune
from training.campaign.members import Campaign, remember
from training.run import run_dir
from training.trackers import broadcast

AUDIT = "audit"
ENSEMBLE = "ensemble.yaml"
SUBMISSIONS = "submissions"
REPORT = "report.html"
_DONE = "stages.yaml"
_FEW = 10  # images that a class should have
_BATCH = 64
START_MODES = ("full", "audit", "tune", "train")  # the modes that a campaign may begin with
LEFT_OUT = 3  # the exit code that tells of folds that were left out


class NothingToPredict(DataError):
    """The data set has no test images."""


def work(campaign: Campaign, wish: RunRequest) -> int:
    """Do what `wish.mode` says; the exit code, which is 3 where a fold was left out.

    Raises `Interrupted` where a stop was asked for, and the `TandemError` of the stage that cannot go on.
    """
    if wish.mode == "audit":
        audited(campaign)
        return 0
    if wish.mode in SHARED_MODES:
        remember(campaign, wish)
    if wish.mode == "full":
        _look_ahead(campaign)
    if wish.mode == "tune":
        tuned(campaign, wish, go_on=False)
        return 0
    if wish.tune:
        tuned(campaign, wish, go_on=True)
    campaign = _in_effect(campaign)
    if wish.mode in ("full", "train"):
        train_members.train(campaign, wish)
    stages = {"fit": [fitted], "predict": [predicted], "report": [reported], "full": [fitted, predicted, reported]}
    if wish.mode in stages:
        _afterwards(campaign, stages[wish.mode])
    left_out = train_members.given_up(campaign)
    for row in left_out:
        print(f"left out: fold {row['fold']} of {row['member']}: {row['reason']}")
    return LEFT_OUT if left_out else 0


def _look_ahead(campaign: Campaign) -> None:
    """The audit, and what prediction will need, before anything is trained."""
    for line in preflight.check(campaign.settings, campaign.folder / SUBMISSIONS):
        print(line)
    data = campaign.settings.data
    if data.audit and not data.streaming and not (campaign.folder / AUDIT / page.NAME).exists():
        audited(campaign)
    if "predict" not in _done(campaign):
        for line in preflight.images(campaign.settings, campaign.folder / AUDIT / audit_table.NAME):
            print(f"warning: {line}", file=sys.stderr)


def _afterwards(campaign: Campaign, stages: Sequence[Callable[[Campaign], None]]) -> None:
    """What one process does alone; the others wait for it and find it done."""
    with _alone(campaign):
        for stage in stages:
            if campaign.stop_requested():
                raise Interrupted(campaign.folder)
            try:
                stage(campaign)
            except NothingToPredict as error:
                if len(stages) == 1:
                    raise
                print(f"no submission: {error}")


def audited(campaign: Campaign) -> None:
    """`audit.csv` and `audit.html`: what is odd about the images and their labels, before anything is trained."""
    with _alone(campaign):
        look.run(campaign.settings.data, campaign.folder / AUDIT, _FEW)


def tuned(campaign: Campaign, wish: RunRequest, go_on: bool) -> None:
    """Search for better settings of all members, or of the one that `wish` names, and write them as a file.

    With `go_on` the campaign has them from now on.
    """
    listed.check(campaign.members, wish.member)
    wanted = [member for member in campaign.members if wish.member in ("", member.name)]
    key = tune.key(wanted)
    if go_on and "tuned" not in _done(campaign) and any(campaign.run(member).exists() for member in wanted):
        raise ConfigError(
            f"{campaign.folder}: is being trained with settings that were not searched; go on without --tune, or begin "
            "a new campaign with --resume never"
        )
    if not _is_done(campaign, "tune", key):
        found = tune.search(campaign, wanted)
        with _alone(campaign):
            if not _is_done(campaign, "tune", key):  # else another process was first
                values = {one.member.name: one.values for one in found}
                _note(campaign, "tune", key, [tune.write(campaign, found)], values)
    noted = _done(campaign)["tune"]
    print(f"tuned settings: {campaign.folder / noted['files'][0]}")
    if go_on and _done(campaign).get("tuned") != noted:
        with _alone(campaign):
            run_dir.write_yaml(campaign.folder / _DONE, {**_done(campaign), "tuned": noted})


def _in_effect(campaign: Campaign) -> Campaign:
    """The campaign with the tuned settings that it was told to go on with, if any."""
    values = _done(campaign).get("tuned", {}).get("values", {})
    members = tuple(
        replace(member, settings=trial.applied(member.settings, values.get(member.name, {})))
        for member in campaign.members
    )
    return replace(campaign, members=members) if values else campaign


@contextmanager
def _alone(campaign: Campaign) -> Iterator[None]:
    """What one process does at a time; the others wait for it. `Interrupted` where a stop is asked for meanwhile."""
    with queue.alone(campaign.folder / ".stages", campaign.stop_requested) as claim:
        if claim is None:
            raise Interrupted(campaign.folder)
        yield


def fitted(campaign: Campaign) -> None:
    """`ensemble.yaml`: weights and temperatures on the out-of-fold answers of all trained folds."""
    folds = train_members.trained(campaign)
    if not folds:
        reasons = "; ".join(row["reason"] for row in train_members.given_up(campaign))
        found = f"all folds were left out ({reasons})" if reasons else "no fold is trained"
        raise CheckpointError(f"{campaign.folder}: {found}; first: {campaign.command('--mode train')}")
    seen, plan = _views(campaign), _plan(campaign, list(folds))
    merge = average.default_merge(plan.combine)
    answered = [path for found in folds.values() for path in found]
    inputs = [path / name for path in answered for name in ("oof.npz", "best/manifest.json")]
    key, out = _key(inputs, str(seen), str(plan)), campaign.folder / ENSEMBLE
    if _is_done(campaign, "fit", key):
        print(f"{out} is made of these folds already")
        return
    runs = [campaign.folder / "members" / name for name in folds]
    if seen != oof_files.ORIGINAL:
        for path in runs:
            for line in views_oof.predict(path, seen, merge, _BATCH, campaign.settings.data.workers):
                print(line, flush=True)
                if campaign.stop_requested():
                    raise Interrupted(campaign.folder)
    made = fit.fit(runs, seen, plan=plan)
    _make_room(campaign.folder)
    files = fit.write(out, made)
    print(fit.report(made))
    print(f"wrote {out}: {counted(len(made.ensemble.members), 'member')}")
    _note(campaign, "fit", key, files)


def _plan(campaign: Campaign, names: list[str]) -> fit.Plan:
    """What the settings ask for; labels are fitted to macro-F1 where that is what counts."""
    wish, metric = campaign.settings.ensemble, campaign.settings.stopping.metric
    weights = {member.name: member.weight for member in campaign.members}
    return fit.Plan(
        method=wish.method,
        combine=wish.combine,
        metric=metric,
        given=tuple(weights[name] for name in names) if wish.method == "fixed" else (),
        bags=wish.bags,
        soften=wish.soften,
        calibrations=wish.calibration,
        clip=wish.clip,
        rules=("prior", "thresholds") if metric == "macro_f1" else (),
        seed=campaign.settings.seed,
    )


def predicted(campaign: Campaign) -> None:
    """The submission of the test images, which lie in `test/` of the data set; as its sample submission, if any."""
    chosen_file = campaign.folder / ENSEMBLE
    if not chosen_file.exists():
        raise CheckpointError(f"{chosen_file}: is not there; first: {campaign.command('--mode fit')}")
    data = campaign.settings.data
    table, sample = sources.test_split(data), sources.sample_submission(data)
    if table is None:
        raise NothingToPredict(f"{data.root}: has neither test.csv nor test/; add the images to predict")
    positive, on_bad = campaign.settings.ensemble.positive, data.on_bad_test_image
    key = _key([chosen_file, *([sample] if sample else [])], *table.ids, f"positive {positive}", on_bad)
    if _is_done(campaign, "predict", key):
        print(f"{campaign.folder / _done(campaign)['predict']['files'][0]} is the submission of this ensemble already")
        return
    files = _submit(campaign, ensemble_file.read(chosen_file), table, sample)
    _note(campaign, "predict", key, files)
    broadcast.publish(campaign.settings, campaign.folder, files[0])


def _submit(
    campaign: Campaign, chosen: ensemble_file.Ensemble, table: sources.Table, sample: Path | None
) -> list[Path]:
    """Everything that can be refused is, before the first image is decoded."""
    data, out = campaign.settings.data, campaign.folder / SUBMISSIONS
    submission.prepare(out)
    with Runner(chosen) as runner:
        classes, aliases, positive = runner.class_names, chosen.aliases, campaign.settings.ensemble.positive
        planned = submission_writer.plan(
            classes, aliases, table.ids, table.id_column, data.target_column, sample, positive
        )
        if planned.layout.note:
            print(planned.layout.note)
        answers, unread = [], dict[int, str]()
        inputs, grid = of_paths(table.paths, table.ids), runner.grid(len(table.paths))
        skip, cut = data.on_bad_test_image == "prior", dict[int, str]()
        for part in runner.stream(inputs, grid, data.workers, skip, cut if data.on_bad_image == "partial" else None):
            answers.append(part.probabilities)
            unread |= part.errors
            if campaign.stop_requested():
                raise Interrupted(campaign.folder)
        if cut:
            print(f"truncated test images: {len(cut)}, predicted as far as they go, the first: {cut[min(cut)]}")
        probabilities = np.concatenate(answers)
        if len(unread) == len(table.ids):
            raise DataError(f"none of the {len(table.ids)} test images can be read; the first: {unread[0]}")
        runner.prior.fill(probabilities, unread)
        labels = runner.prior.labels(runner.finish, probabilities, unread)
        written = planned.write(out, runner, probabilities, labels, unread or None)
        print(summary.text(probabilities, classes, table.ids, labels=labels))
    if unread:
        told = prior.warning(unread, len(table.ids), runner.prior.text)
        print(f"warning: {counted(len(unread), 'test image')} cannot be read; {told}", file=sys.stderr)
    print(f"wrote {written[0]} and {written[1]}")
    return written


def reported(campaign: Campaign) -> None:
    """`report.html` of the whole campaign, with the ensemble and the newest submission where they are there."""
    folds = train_members.trained(campaign)
    runs = [campaign.folder / "members" / name for name in folds]
    whole = [path for path in runs if (path / run_dir.FINISHED).exists()]
    if not whole:
        raise CheckpointError(f"{campaign.folder}: no member is trained; first: {campaign.command('--mode train')}")
    train_members.given_up(campaign)
    made, done = campaign.folder / ENSEMBLE, _done(campaign)
    sent = campaign.folder / done["predict"]["files"][0] if "predict" in done else None
    out = campaign.folder / REPORT
    report.write(whole, out, made if made.exists() else None, sent if sent and sent.exists() else None)
    print(f"wrote {out}")


def _views(campaign: Campaign) -> tuple[str, ...]:
    """The views that all members of the ensemble see; `ConfigError` where these or other wishes for it differ."""
    first = campaign.members[0]
    for member in campaign.members:
        one, other = (each.settings for each in (first, member))
        if (one.ensemble, one.stopping.metric) != (other.ensemble, other.stopping.metric):
            raise ConfigError(
                f"ensemble, stopping.metric: {member.name} has others than {first.name}; there is one ensemble, write "
                "them above the members"
            )
        if member.settings.tta != first.settings.tta:
            raise ConfigError(
                f"tta.views: {member.name} has {list(member.settings.tta.views)}, {first.name} has "
                f"{list(first.settings.tta.views)}; an ensemble has the same for all, write them above the members"
            )
    return views.expand(first.settings.tta.views)


def _key(files: Iterable[Path], *words: str) -> str:
    """SHA-256 of what a stage starts from: the contents of files, and words."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    total.update("\n".join(words).encode())
    return total.hexdigest()


def _done(campaign: Campaign) -> dict[str, dict]:
    """What each stage noted; files are relative to the campaign's folder."""
    file = campaign.folder / _DONE
    return dict(yaml.safe_load(file.read_text())) if file.exists() else {}


def _is_done(campaign: Campaign, stage: str, key: str) -> bool:
    noted = _done(campaign).get(stage, {"inputs": "", "files": []})
    return noted["inputs"] == key and all((campaign.folder / name).exists() for name in noted["files"])


def _note(
    campaign: Campaign, stage: str, key: str, files: list[Path], values: dict[str, dict[str, Any]] | None = None
) -> None:
    noted = {
        "inputs": key,
        "files": [path.relative_to(campaign.folder).as_posix() for path in files],
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        **({"values": values} if values else {}),
    }
    run_dir.write_yaml(campaign.folder / _DONE, {**_done(campaign), stage: noted})


def _make_room(folder: Path) -> None:
    """Rename what was made of other inputs: `ensemble.yaml` and what belongs to it become `ensemble_1.yaml`, ..."""
    stem = Path(ENSEMBLE).stem
    old = [path for path in folder.glob(f"{stem}*") if not re.match(rf"{stem}_\d", path.name)]
    number = 1 + sum(1 for _ in folder.glob(f"{stem}_[0-9]*.yaml"))
    for path in old:
        new = path.with_name(f"{stem}_{number}{path.name.removeprefix(stem)}")
        path.rename(new)
        if new.suffix == ".yaml":
            atomic_write(new, new.read_text().replace(f"{stem}_layers.", f"{stem}_{number}_layers."))
