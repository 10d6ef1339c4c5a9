"""`report.html`: one self-contained page about one or more runs, and the ensemble made of them. Needs no network.

The numbers are made in `figures`, the images in `pictures`, what other stages left is read in `findings` and `mixture`;
the page itself is `training/templates`. Its own script is named by hash, so that the browser runs no other one.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import yaml

from training import metrics, results
from training.report import figures, findings, mixture, pictures

_TEMPLATES = Path(__file__).parents[1] / "templates"


def write(
    runs: list[Path], out: Path, ensemble: Path | None = None, submission: Path | None = None, explain: bool = True
) -> Path:
    """Write the page about finished `runs`; with an ensemble file and a submission, about them too.

    With `explain` the worst mistakes get Grad-CAM pictures, for which each fold's network is opened once.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_TEMPLATES / "report.js").read_text()
    said = findings.submission(submission) if submission else None
    page = environment.get_template("report.html").render(
        title=" + ".join(run.resolve().name for run in runs),
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
        style=(_TEMPLATES / "report.css").read_text(),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        runs=[_run(run, said["counts"] if said else {}, explain) for run in runs],
        ensemble=mixture.ensemble(ensemble, pictures.paths(runs[0])) if ensemble else None,
        submission=said,
        failures=findings.failures(out, runs),
        audit=findings.audit([out.parent, *runs]),
    )
    partial = out.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(out)
    return out


def _run(run: Path, test: dict[str, int], explain: bool) -> dict[str, Any]:
    summary = results.fold_results(run)
    _, logits, targets = results.oof(run)
    card = results.card(run)
    names = card.class_names
    counts = metrics.confusion(logits, targets)
    path_of = pictures.paths(run)
    mistakes = pictures.mistakes(run, path_of, names)
    starts = results.starts(run)
    return {
        "name": run.resolve().name,
        "model": card.model,
        "summary": summary,
        "images": len(targets),
        "curves": figures.curves(run),
        "classes": figures.classes(counts, names),
        "matrix": figures.matrix(counts, names),
        "pairs": figures.pairs(counts, names),
        "reliability": figures.reliability(logits, targets),
        "distribution": figures.distribution(names, results.class_counts(run), logits.argmax(axis=1), test),
        "unexplained": pictures.explain(mistakes) if explain else "not asked for",
        "mistakes": mistakes,
        "wrong": int((logits.argmax(axis=1) != targets).sum()),
        "suspects": pictures.with_thumbnails(results.suspects(run)[: pictures.WORST], path_of),
        "machine": findings.machine(run),
        "config": (run / "config.yaml").read_text(),
        "environment": yaml.safe_dump(starts[-1], sort_keys=False) if starts else "",
        "commands": findings.commands(run, starts),
    }
