"""`report.html`: one self-contained page about one or more runs, and the ensemble made of them. Needs no network.

`figures` computes the numbers, `pictures` the images; `findings` and `mixture` read what other stages wrote; the page
is a template of `infer.pages`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from config.errors import CheckpointError
from infer.pages import figures as shared
from infer.pages import page
from infer.pages.thumbnails import WORST, with_thumbnails
from training.loop import metrics
from training.report import figures, findings, mixture, pictures
from training.run import results, run_dir


def write(
    runs: list[Path], out: Path, ensemble: Path | None = None, submission: Path | None = None, explain: bool = True
) -> Path:
    """Write the page about finished `runs`; with an ensemble file and a submission, about them too.

    With `explain` the worst mistakes get Grad-CAM pictures, for which each fold's network is opened once.
    """
    predictions = findings.submission(submission) if submission else None
    return page.write(
        out,
        "report.html",
        title=" + ".join(each.resolve().name for each in runs),
        runs=[_section(each, predictions["counts"] if predictions else {}, explain) for each in runs],
        ensemble=mixture.described(ensemble, pictures.paths(runs[0])) if ensemble else None,
        submission=predictions,
        failures=findings.left_out(out, runs),
        audit=findings.audit([out.parent, *runs]),
    )


def runs_in(path: Path) -> list[Path]:
    """The finished runs that `path` means: itself, or the members of a campaign; `CheckpointError` for none."""
    if (path / run_dir.FINISHED).exists():
        return [path]
    runs = [file.parent for file in sorted(path.glob(f"members/*/{run_dir.FINISHED}"))]
    if not runs and (path / run_dir.CONFIG).exists():
        raise CheckpointError(f"{path}: is not finished; go on with --resume {path}")
    if not runs:
        raise CheckpointError(f"{path}: is no finished run, nor a campaign with one; give the folder of one")
    return runs


def made_of(campaign: Path) -> tuple[Path | None, Path | None]:
    """A campaign's ensemble file and its newest submission, as far as they are there."""
    chosen = campaign / "ensemble.yaml"
    sent = [path for path in campaign.glob("submissions/*.csv") if not path.stem.endswith("_probabilities")]
    newest = max(sent, key=lambda path: path.stat().st_mtime_ns, default=None)
    return (chosen if chosen.exists() else None), newest


def _section(folder: Path, test: dict[str, int], explain: bool) -> dict[str, Any]:
    summary = results.fold_results(folder)
    _, logits, targets = results.oof(folder)
    card = results.card(folder)
    names = card.class_names
    counts, predictions = metrics.confusion(logits, targets), metrics.predictions(logits)
    path_of = pictures.paths(folder)
    mistakes = pictures.mistakes(folder, path_of, names)
    starts = results.starts(folder)
    return {
        "name": folder.resolve().name,
        "model": card.model,
        "summary": summary,
        "images": len(targets),
        "curves": figures.curves(folder),
        "classes": figures.classes(counts, names),
        "matrix": shared.matrix(counts, names),
        "pairs": shared.pairs(counts, names),
        "reliability": figures.reliability(logits, targets),
        "distribution": figures.distribution(names, results.class_counts(folder), predictions, test),
        "unexplained": pictures.explain(mistakes) if explain else "not asked for",
        "mistakes": mistakes,
        "wrong": int((predictions != targets).sum()),
        "suspects": with_thumbnails(results.suspects(folder)[:WORST], path_of),
        "machine": findings.machine(folder),
        "config": (folder / "config.yaml").read_text(),
        "environment": yaml.safe_dump(starts[-1], sort_keys=False) if starts else "",
        "commands": findings.commands(folder, starts),
    }
