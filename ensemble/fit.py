"""Fits an ensemble on out-of-fold (OOF) predictions: temperatures, weights or a stack, calibration, the labels' rule.

A run's fold members share its weight. Unbiased scores come from `nested`, and `analysis` explains them. OOF predictions
with TTA views (`infer.views_oof`) are taken where the runs have them, so that calibration is fitted to what inference
will give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from config.errors import ConfigError
from config.places import atomic_write
from ensemble import analysis, ensemble_file, ensemble_fit, fitted_params, nested, scores
from ensemble.calibration import reliability
from ensemble.ensemble_file import Ensemble
from ensemble.ensemble_fit import EnsembleFit, Plan, Pool, mix
from ensemble.member import Member
from ensemble.nested import Nested
from ensemble.oof import oof_files, oof_table
from ensemble.scores import Score
from ensemble.weighting import weights
from ensemble.weighting.average import Merge, default_merge
from ensemble.weighting.weights import optimum

__all__ = ["EnsembleFit", "Fitted", "Plan", "Score", "fit", "mix", "optimum", "report", "write"]


@dataclass(frozen=True)
class Fitted:
    """The ensemble and its OOF scores. `runs` and `equal` are before the fit, `fitted` is on the rows of the fit,
    `cross_fitted` on rows that each fit had not seen: the unbiased score. `nested` has all scores of that kind, `notes`
    are warnings for the user."""

    ensemble: Ensemble
    blend: EnsembleFit
    runs: list[Score]
    equal: Score
    fitted: Score
    cross_fitted: Score
    nested: Nested
    plan: Plan
    analysis: analysis.Analysis
    notes: tuple[str, ...] = ()


def fit(
    paths: Sequence[Path],
    views: Sequence[str] = ("original",),
    replaced: Mapping[Path, Member] | None = None,
    *,
    plan: Plan = Plan(),  # noqa: B008
    aliases: tuple[tuple[str, ...], ...] = (),
    merge: Merge | None = None,
) -> Fitted:
    """Fit the runs in `paths` as `plan` says; `replaced` maps `RUN/fold_K` to the replacement of its checkpoint, and
    `merge` is how a member's views merge.

    Raises `CheckpointError`, `DataError` or `ConfigError` for runs that cannot be read or do not fit together.
    """
    weights.check(plan, len(paths))
    resolved = [path.resolve() for path in paths]
    twice = [path for number, path in enumerate(paths) if resolved[number] in resolved[:number]]
    if twice:
        raise ConfigError(f"{twice[0]}: is named twice; give each run once, and --weights for one that counts more")
    merging = merge or default_merge(plan.combine)
    runs = [oof_files.read(path, views, merging) for path in paths]
    if len({run.views for run in runs}) > 1:  # not all have these views
        runs = [run if run.views == oof_files.ORIGINAL else oof_files.read(run.path) for run in runs]
    members = _members(runs, replaced or {})
    table, names = oof_files.align(runs), [run.path.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    pool = ensemble_fit.fit_pool(table, plan)
    evaluation = nested.evaluate(table, plan)
    logs = ensemble_fit.mix_pool(table, pool)
    step = ensemble_fit.fit_step(evaluation.kind, logs, table.targets, plan.clip)
    predictions = step.apply(logs)
    best = EnsembleFit(pool, step, ensemble_fit.shifts(evaluation.rule, predictions, table.targets))
    predicted = ensemble_fit.decision.labels(predictions, best.shifts)
    honest = scores.score("cross-fitted", evaluation.selected, table.targets, evaluation.predicted)
    count = len(runs)
    equal = ensemble_fit.mix_pool(table, Pool((1.0,) * count, np.full(count, 1 / count)))
    alone = []
    for name, run_logits, rows in zip(names, table.logits, table.present, strict=True):
        of_run = replace(table, logits=[run_logits], present=[rows]).take(rows)
        alone.append(scores.score(name, ensemble_fit.mix_pool(of_run, Pool((1.0,), np.ones(1))), of_run.targets))
    return Fitted(
        _ensemble(best, runs, members, names).model_copy(
            update={"views": tuple(views), "aliases": aliases, "merge": merge}
        ),
        best,
        alone,
        scores.score("equal weights", equal, table.targets),
        scores.score("fitted", predictions, table.targets, predicted),
        honest,
        evaluation,
        plan,
        analysis.analyse(table, evaluation, names, runs[0].class_names, plan, [*alone, honest]),
        _notes(runs, names, table, tuple(views), plan),
    )


def write(path: Path, fitted: Fitted) -> list[Path]:
    """Write the ensemble's YAML file and, beside it, its layers, the analysis and the reliability diagram.

    Returns what was written; `ConfigError` when the YAML file or its layers exist already. Analysis and picture of an
    ensemble that is gone are replaced.
    """
    files = [path, *(path.with_name(f"{path.stem}{end}") for end in ("_analysis.json", "_reliability.png"))]
    ensemble, layers = fitted.ensemble, fitted.blend.layers
    arrays = path.with_name(f"{path.stem}_layers.safetensors")
    if layers:
        files.append(arrays)
        ensemble = ensemble.model_copy(update={"layers": arrays})
    for file in (path, arrays):
        ensemble_file.refuse_existing(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    if layers:
        fitted_params.write(arrays, layers)
    atomic_write(files[1], fitted.analysis.to_json(fitted.notes))
    reliability.draw(files[2], fitted.analysis)
    ensemble_file.write(path, ensemble)
    return files


def report(fitted: Fitted) -> str:
    """The scores as a table, with each run's weight and temperature, and what the analysis says in short."""
    evaluation, plan, pool, step = fitted.nested, fitted.plan, fitted.blend.pool, fitted.blend.step
    unseen = [evaluation.before, *evaluation.after.values(), *evaluation.ruled.values(), fitted.cross_fitted]
    width = max(len(score.name) for score in [*fitted.runs, fitted.equal, fitted.fitted, *unseen])
    lines = [
        f"{'':<{width}} {'images':>7} {'log loss':>9} {'macro-F1':>9} {'accuracy':>9} {'Brier':>7} {'ECE':>7}"
        f" {'weight':>7} {'temp.':>6}"
    ]
    for score, weight, temperature in zip(fitted.runs, pool.weights, pool.temperatures, strict=True):
        counted = "stacked" if plan.method == "stacking" else f"{weight:.3f}"
        lines.append(f"{_line(score, width)} {counted:>7} {temperature:>6.3f}")
    lines += [_line(fitted.equal, width), f"{_line(fitted.fitted, width)} {'':>7} {step.temperature:>6.3f}"]
    lines.append("each row answered by a fit that had not seen its fold:")
    lines += [_line(score, width) for score in unseen]
    words = [f"cross-fitted: calibration {evaluation.kind}"]
    if step.clip:
        words.append(f"no probability under {step.clip:.2g}")
    if evaluation.ruled:
        words.append(f"labels by {evaluation.rule or 'the most probable class, which no rule surpassed'}")
    return "\n".join([*lines, ", ".join(words), *fitted.notes, "", fitted.analysis.text()])


def _line(score: Score, width: int) -> str:
    return (
        f"{score.name:<{width}} {score.rows:>7} {score.log_loss:>9.4f} {score.macro_f1:>9.4f} {score.accuracy:>9.4f}"
        f" {score.brier:>7.4f} {score.ece:>7.4f}"
    )


def _ensemble(
    best: EnsembleFit,
    runs: Sequence[oof_files.Run],
    members: Sequence[Sequence[Member]],
    names: Sequence[str],
) -> Ensemble:
    """A run's folds share its weight; runs of no weight are left out, unless a stack needs them."""
    pool, step = best.pool, best.step
    shares = np.ones(len(runs)) if pool.stack else pool.weights
    multipliers: dict[str, float] = {}
    if best.shifts is not None:
        factors = np.exp(best.shifts)
        multipliers = {name: float(factors[c]) for c, name in enumerate(runs[0].class_names)}
    return Ensemble(
        combine=pool.combine,
        temperature=step.temperature,
        tempered="views" if runs[0].views == oof_files.ORIGINAL else "mean",
        clip=step.clip,
        class_multipliers=multipliers,
        members=tuple(
            member.model_copy(
                update={"group": name, "weight": float(share) / len(mine), "temperature": pool.temperatures[g]}
            )
            for g, (name, share, mine) in enumerate(zip(names, shares, members, strict=True))
            for member in mine
            if share > 0
        ),
    )


def _notes(
    runs: Sequence[oof_files.Run], names: Sequence[str], table: oof_table.Table, views: tuple[str, ...], plan: Plan
) -> tuple[str, ...]:
    """Notes on the scores: runs that predicted fewer images, and views that were not fitted."""
    notes, total = [], len(table.ids)
    for name, run, present in zip(names, runs, table.present, strict=True):
        if not present.all():
            folds = ", ".join(str(oof_files.number(fold)) for fold in run.folds)
            notes.append(
                f"{name} answers {present.sum()} of {total} images (folds {folds}); the others stand in for it"
            )
    common = int(table.common().sum())
    everywhere = plan.method in ("equal", "fixed") or (plan.method, plan.combine) == ("convex", "probabilities")
    if notes and not everywhere:
        notes.append(f"fitted on the {common} images that all runs answer")
    if views != oof_files.ORIGINAL and runs[0].views == oof_files.ORIGINAL:
        names, words = ", ".join(views), " ".join(str(run.path) for run in runs)
        notes.append(
            f"fitted on the original view; at inference each member sees {names}. To fit what they will give, first"
            f" run: python -m infer oof {words} --tta {' '.join(views)}"
        )
    elif views != oof_files.ORIGINAL:
        notes.append(f"fitted on answers with the views {', '.join(views)}")
    return tuple(notes)


def _members(runs: Sequence[oof_files.Run], replaced: Mapping[Path, Member]) -> list[list[Member]]:
    """For each run its folds' members: the best checkpoint, or its replacement."""
    paths = {path.resolve(): member for path, member in replaced.items()}
    wanted = {path.parent if path.name == oof_files.BEST else path: member for path, member in paths.items()}
    folds = {fold.resolve() for run in runs for fold in run.folds}
    unknown = wanted.keys() - folds
    if unknown:
        known = ", ".join(str(fold) for run in runs for fold in run.folds)
        raise ConfigError(f"--replace {min(unknown)}: is no fold of these runs; they have {known}")
    return [[wanted.get(fold.resolve(), Member(path=fold / oof_files.BEST)) for fold in run.folds] for run in runs]
