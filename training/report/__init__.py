"""`report.html`: one self-contained page about one or more runs, and the ensemble made of them. Needs no network.

The numbers are made in `figures`, the images in `pictures`, what other stages left is read in `findings` and `mixture`;
the page itself is `training/templates`. Its own script is named by hash, so that the browser runs no other one.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import yaml

from config.errors import CheckpointError
from training.loop import metrics
from training.report import figures, findings, mixture, pictures
from training.run import results, run_dir

_TEMPLATES = Path(__file__).parents[1] / "templates"


def write(
    runs: list[Path], out: Path, ensemble: Path | None = None, submission: Path | None = None, explain: bool = True
) -> Path:
    """Write the page about finished `runs`; with an ensemble file and a submission, about them too.

    With `explain` the worst mistakes get Grad-CAM pictures, for which each fold's network is opened once.
    """
    said = findings.submission(submission) if submission else None
    return render(
        out,
        "report.html",
        title=" + ".join(each.resolve().name for each in runs),
        runs=[_section(each, said["counts"] if said else {}, explain) for each in runs],
        ensemble=mixture.described(ensemble, pictures.paths(runs[0])) if ensemble else None,
        submission=said,
        failures=findings.failures(out, runs),
        audit=findings.audit([out.parent, *runs]),
    )


def render(out: Path, template: str, **values: Any) -> Path:
    """Write a page of `training/templates` with these values, the shared style and script, and the time; its path."""
    out.parent.mkdir(parents=True, exist_ok=True)
    run_dir.write_text(out, page(template, **values))
    return out


def page(
    template: str, scripts: Sequence[str] = ("report.js",), styles: Sequence[str] = ("report.css",), **values: Any
) -> str:
    """A page of `training/templates` with these values, its styles and scripts inside, and the time."""
    script = "\n".join(map(_source, scripts))
    return fragment(
        template,
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
        style="".join(map(_source, styles)),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )


def fragment(template: str, **values: Any) -> str:
    """A part of a page."""
    return _templates().get_template(template).render(**values)


def prediction_page(title: str, views: Sequence[str], limit: int, post: str, back: str = "") -> bytes:
    """The page that posts images of at most `limit` bytes to the address `post` and shows what they are."""
    values = {"title": title, "views": views, "limit": limit, "post": post, "back": back}
    return page("predict.html", ("predict.js",), ("report.css", "board.css"), **values).encode()


@functools.cache
def _source(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def runs_in(path: Path) -> list[Path]:
    """The finished runs that `path` means: itself, or the members of a campaign; `CheckpointError` for none."""
    if (path / run_dir.FINISHED).exists():
        return [path]
    found = [file.parent for file in sorted(path.glob(f"members/*/{run_dir.FINISHED}"))]
    if not found and (path / run_dir.CONFIG).exists():
        raise CheckpointError(f"{path}: is not finished; go on with --resume {path}")
    if not found:
        raise CheckpointError(f"{path}: is no finished run, nor a campaign with one; give the folder of one")
    return found


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
    counts, said = metrics.confusion(logits, targets), metrics.predictions(logits)
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
        "matrix": figures.matrix(counts, names),
        "pairs": figures.pairs(counts, names),
        "reliability": figures.reliability(logits, targets),
        "distribution": figures.distribution(names, results.class_counts(folder), said, test),
        "unexplained": pictures.explain(mistakes) if explain else "not asked for",
        "mistakes": mistakes,
        "wrong": int((said != targets).sum()),
        "suspects": pictures.with_thumbnails(results.suspects(folder)[: pictures.WORST], path_of),
        "machine": findings.machine(folder),
        "config": (folder / "config.yaml").read_text(),
        "environment": yaml.safe_dump(starts[-1], sort_keys=False) if starts else "",
        "commands": findings.commands(folder, starts),
    }
