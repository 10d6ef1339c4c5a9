"""The stages of a campaign: audit, train, fit, predict, report, each by itself or all in order (`full`).

A stage reads what earlier stages wrote. It does not repeat work on the same inputs; files made from other inputs are
renamed, never overwritten. `train_members` trains, `tune` searches for settings, `infer` predicts.
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

from backends import installed
from config import members as listed
from config.command import SHARED_MODES, RunRequest
from config.errors import BackendUnavailable, CheckpointError, ConfigError, DataError, Interrupted
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
from training.campaign import preflight, queue, train_members, trial
from training.campaign.members import Campaign, remember
from training.run import results, run_dir
from training.trackers import broadcast

AUDIT = "audit"
ENSEMBLE = "ensemble.yaml"
SUBMISSIONS = "submissions"
REPORT = "report.html"
_DONE = "stages.yaml"
_FEW = 10  # images that a class should have
_BATCH = 64
_INSTALL = 'tuning needs optuna, not installed here; run: pip install -e ".[tune]"'
START_MODES = ("full", "audit", "tune", "train")  # the modes that a campaign may begin with
LEFT_OUT = 3  # the exit code where folds were left out


class NothingToPredict(DataError):
    """The data set has no test images."""


def work(campaign: Campaign, request: RunRequest) -> int:
    """Run the stages of `request.mode`; the exit code, which is 3 where a fold was left out.

    Raises `Interrupted` where a stop was requested, and the `TandemError` of the stage that fails.
    """
    if request.mode == "audit":
        audited(campaign)
        return 0
    if request.mode in SHARED_MODES:
        remember(campaign, request)
    if request.mode == "full":
        _check_inputs(campaign)
    if request.mode == "tune":
        tuned(campaign, request, adopt=False)
        return 0
    if request.tune:
        tuned(campaign, request, adopt=True)
    if values := _done(campaign).get("tuned", {}).get("values", {}):
        members = (replace(m, settings=trial.applied(m.settings, values.get(m.name, {}))) for m in campaign.members)
        campaign = replace(campaign, members=tuple(members))
    if request.mode in ("full", "train"):
        train_members.train(campaign, request)
    stages = {"fit": [fitted], "predict": [predicted], "report": [reported], "full": [fitted, predicted, reported]}
    if request.mode in stages:
        _run_stages(campaign, stages[request.mode])
    left_out = train_members.given_up(campaign)
    for row in left_out:
        print(f"left out: fold {row['fold']} of {row['member']}: {row['reason']}")
    return LEFT_OUT if left_out else 0


def _check_inputs(campaign: Campaign) -> None:
    """The audit, and the check of what prediction will need, before anything is trained."""
    print(*preflight.check(campaign.settings, campaign.folder / SUBMISSIONS), sep="\n")
    data = campaign.settings.data
    if data.audit and not data.streaming and not (campaign.folder / AUDIT / page.NAME).exists():
        audited(campaign)
    if "predict" not in _done(campaign):
        for line in preflight.images(campaign.settings, campaign.folder / AUDIT / audit_table.NAME):
            print(f"warning: {line}", file=sys.stderr)


def _run_stages(campaign: Campaign, stages: Sequence[Callable[[Campaign], None]]) -> None:
    """Run stages in one process; the others wait for it and find them done."""
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


def tuned(campaign: Campaign, request: RunRequest, adopt: bool) -> None:
    """Search for better settings of all members, or of the one that `request` names, and write them as a file.

    With `adopt` the campaign is trained with them from now on.
    """
    listed.check(campaign.members, request.member)
    wanted = [member for member in campaign.members if request.member in ("", member.name)]
    key = trial.key(wanted)
    if adopt and "tuned" not in _done(campaign) and any(campaign.run(member).exists() for member in wanted):
        raise ConfigError(
            f"{campaign.folder}: is being trained with settings that were not searched; go on without --tune, or begin "
            "a new campaign with --resume never"
        )
    if not _is_done(campaign, "tune", key):
        if not installed("optuna"):
            raise BackendUnavailable(_INSTALL)
        from training.campaign import tune

        best = tune.search(campaign, wanted)
        with _alone(campaign):
            if not _is_done(campaign, "tune", key):  # else another process was first
                _note(campaign, "tune", key, [tune.write(campaign, best)], {b.member.name: b.values for b in best})
    noted = _done(campaign)["tune"]
    print(f"tuned settings: {campaign.folder / noted['files'][0]}")
    if adopt and _done(campaign).get("tuned") != noted:
        with _alone(campaign):
            run_dir.write_yaml(campaign.folder / _DONE, {**_done(campaign), "tuned": noted})


@contextmanager
def _alone(campaign: Campaign) -> Iterator[None]:
    """Hold the campaign's stages; other processes wait. `Interrupted` where a stop is requested meanwhile."""
    with queue.alone(campaign.folder / ".stages", campaign.stop_requested) as claim:
        if claim is None:
            raise Interrupted(campaign.folder)
        yield


def fitted(campaign: Campaign) -> None:
    """`ensemble.yaml`: weights and temperatures on the out-of-fold predictions of all trained folds."""
    folds = train_members.trained(campaign)
    if not folds:
        reasons = "; ".join(row["reason"] for row in train_members.given_up(campaign))
        cause = f"all folds were left out ({reasons})" if reasons else "no fold is trained"
        raise CheckpointError(f"{campaign.folder}: {cause}; first: {campaign.command('--mode train')}")
    tta_views, plan = _views(campaign), _plan(campaign, list(folds))
    inputs = [path / name for paths in folds.values() for path in paths for name in ("oof.npz", "best/manifest.json")]
    key, out = _key(inputs, str(tta_views), str(plan)), campaign.folder / ENSEMBLE
    if _is_done(campaign, "fit", key):
        print(f"{out} is made of these folds already")
        return
    runs = [campaign.folder / "members" / name for name in folds]
    if tta_views != oof_files.ORIGINAL:
        merge = average.default_merge(plan.combine)
        for path in runs:
            for line in views_oof.predict(path, tta_views, merge, _BATCH, campaign.settings.data.workers):
                print(line, flush=True)
                if campaign.stop_requested():
                    raise Interrupted(campaign.folder)
    result = fit.fit(runs, tta_views, plan=plan)
    _rename_earlier(campaign.folder)
    files = fit.write(out, result)
    print(fit.report(result))
    print(f"wrote {out}: {counted(len(result.ensemble.members), 'member')}")
    _note(campaign, "fit", key, files)


def _plan(campaign: Campaign, names: list[str]) -> fit.Plan:
    """The settings of the fit; labels are fitted to macro-F1 where that is the metric."""
    ensemble, metric = campaign.settings.ensemble, campaign.settings.stopping.metric
    weights = {member.name: member.weight for member in campaign.members}
    return fit.Plan(
        method=ensemble.method,
        combine=ensemble.combine,
        metric=metric,
        given=tuple(weights[name] for name in names) if ensemble.method == "fixed" else (),
        bags=ensemble.bags,
        soften=ensemble.soften,
        calibrations=ensemble.calibration,
        clip=ensemble.clip,
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
    """Write the submission; everything that can be refused is refused before the first image is decoded."""
    data, out = campaign.settings.data, campaign.folder / SUBMISSIONS
    submission.prepare(out)
    with Runner(chosen) as runner:
        classes, aliases, positive = runner.class_names, chosen.aliases, campaign.settings.ensemble.positive
        planned = submission_writer.plan(
            classes, aliases, table.ids, table.id_column, data.target_column, sample, positive
        )
        if planned.layout.note:
            print(planned.layout.note)
        chunks, unread = [], dict[int, str]()
        inputs, grid = of_paths(table.paths, table.ids), runner.grid(len(table.paths))
        skip, cut = data.on_bad_test_image == "prior", dict[int, str]()
        for chunk in runner.stream(inputs, grid, data.workers, skip, cut if data.on_bad_image == "partial" else None):
            chunks.append(chunk.probabilities)
            unread |= chunk.errors
            if campaign.stop_requested():
                raise Interrupted(campaign.folder)
        if cut:
            print(f"truncated test images: {len(cut)}, predicted as far as they go, the first: {cut[min(cut)]}")
        probabilities = np.concatenate(chunks)
        if len(unread) == len(table.ids):
            raise DataError(f"none of the {len(table.ids)} test images can be read; the first: {unread[0]}")
        runner.prior.fill(probabilities, unread)
        labels = runner.prior.labels(runner.finish, probabilities, unread)
        written = planned.write(out, runner, probabilities, labels, unread or None)
        print(summary.text(probabilities, classes, table.ids, labels=labels))
    if unread:
        fill = prior.warning(unread, len(table.ids), runner.prior.text)
        print(f"warning: {counted(len(unread), 'test image')} cannot be read; {fill}", file=sys.stderr)
    print(f"wrote {written[0]} and {written[1]}")
    return written


def reported(campaign: Campaign) -> None:
    """`report.html` of the whole campaign, with the ensemble and the newest submission where they exist."""
    runs = [campaign.folder / "members" / name for name in train_members.trained(campaign)]
    finished = [path for path in runs if (path / run_dir.FINISHED).exists()]
    if not finished:
        raise CheckpointError(f"{campaign.folder}: no member is trained; first: {campaign.command('--mode train')}")
    train_members.given_up(campaign)
    ensemble, done = campaign.folder / ENSEMBLE, _done(campaign)
    sent = campaign.folder / done["predict"]["files"][0] if "predict" in done else None
    out = campaign.folder / REPORT
    report.write(finished, out, ensemble if ensemble.exists() else None, sent if sent and sent.exists() else None)
    print(f"wrote {out}")


def _views(campaign: Campaign) -> tuple[str, ...]:
    """The TTA views of all members; `ConfigError` where members differ in settings of the ensemble."""
    first = campaign.members[0]
    for member in campaign.members:
        expected, actual = first.settings, member.settings
        if (expected.ensemble, expected.stopping.metric) != (actual.ensemble, actual.stopping.metric):
            raise ConfigError(
                f"ensemble, stopping.metric: {member.name} has others than {first.name}; there is one ensemble, write "
                "them above the members"
            )
        if actual.tta != expected.tta:
            raise ConfigError(
                f"tta.views: {member.name} has {list(actual.tta.views)}, {first.name} has "
                f"{list(expected.tta.views)}; an ensemble has the same for all, write them above the members"
            )
    return views.expand(first.settings.tta.views)


def _key(files: Iterable[Path], *words: str) -> str:
    """SHA-256 of a stage's inputs: the contents of files, and words."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    total.update("\n".join(words).encode())
    return total.hexdigest()


def _done(campaign: Campaign) -> dict[str, dict]:
    """What each stage noted; files are relative to the campaign's folder."""
    file = campaign.folder / _DONE
    return dict(results.read_yaml(file)) if file.exists() else {}


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


def _rename_earlier(folder: Path) -> None:
    """Rename what was made of other inputs: `ensemble.yaml` and the files beside it become `ensemble_1.yaml`, ..."""
    stem = Path(ENSEMBLE).stem
    number = 1 + len(list(folder.glob(f"{stem}_[0-9]*.yaml")))
    for path in [path for path in folder.glob(f"{stem}*") if not re.match(rf"{stem}_\d", path.name)]:
        new = path.with_name(f"{stem}_{number}{path.name.removeprefix(stem)}")
        path.rename(new)
        if new.suffix == ".yaml":
            atomic_write(new, new.read_text().replace(f"{stem}_layers.", f"{stem}_{number}_layers."))
