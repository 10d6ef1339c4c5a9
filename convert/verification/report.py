"""Writes the results of a verification beside the artefacts: `verify.json` for programs, `verify.md` for people."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from config.errors import ConvertError
from config.places import atomic_write
from config.text import counted
from convert.verification.verify import Comparison

_COLUMNS = {
    "artefact": "artefact",
    "runtime": "runtime",
    "precision": "precision",
    "megabytes": "MB",
    "milliseconds": "ms an image",
    "milliseconds_checkpoint": "ms of the checkpoint",
    "images": "images",
    "top1_agreement": "top-1 agreement",
    "tied_flips": "flips of ties",
    "clear_agreement": "agreement without ties",
    "accuracy": "accuracy",
    "accuracy_checkpoint": "accuracy of the checkpoint",
    "max_logit_difference": "max logit diff",
    "mean_logit_difference": "mean logit diff",
    "torch_error": "torch's own fp32 error",
    "kl_divergence": "KL",
    "log_loss": "log loss",
    "log_loss_checkpoint": "log loss of the checkpoint",
}
_SHARES = ("top1_agreement", "clear_agreement", "accuracy", "accuracy_checkpoint")
_KEPT = {*_COLUMNS, "faults", "machine", "not_tried"}


def write(folder: Path, comparisons: Sequence[Comparison]) -> Path:
    """Write both files into `folder` and return the first; rows about other artefacts there are preserved."""
    path = folder / "verify.json"
    named = {c.artefact for c in comparisons}
    rows = [row for row in _read(path) if row["artefact"] not in named]
    for comparison in comparisons:  # JSON has no NaN: numbers that are not finite become null
        items = asdict(comparison).items()
        rows.append({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in items})
    for file, text in ((path, json.dumps(rows, indent=1) + "\n"), (folder / "verify.md", markdown(rows))):
        try:
            atomic_write(file, text)
        except OSError as error:
            raise ConvertError(f"{file}: cannot be written ({error.strerror or error})") from error
    return path


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table, one line a comparison, and below it on what machine, and which runtimes were not there to try."""
    lines = ["| " + " | ".join([*_COLUMNS.values(), "verdict"]) + " |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for row in rows:
        verdict = "; ".join(row["faults"]) or "within the limits"
        lines.append("| " + " | ".join([_cell(key, row[key]) for key in _COLUMNS] + [verdict]) + " |")
    machines = dict.fromkeys(row["machine"] for row in rows)
    lines += ["", f"Milliseconds: median of one image at a time on {'; '.join(machines)}."]
    absent = dict.fromkeys(name for row in rows for name in row["not_tried"])
    lines += ["", f"Not tried, since the machine has none: {', '.join(absent)}."] if absent else []
    return "\n".join(lines) + "\n"


def line(comparison: Comparison) -> str:
    """One comparison in one line, for a terminal."""
    c, speed, ties, accuracy = comparison, "", "", ""
    if math.isnan(c.torch_error):
        return f"{c.artefact} on {c.runtime}, {c.megabytes:.1f} MB: {'; '.join(c.faults)}"
    if c.milliseconds is not None and c.milliseconds_checkpoint is not None:
        speed = f", {c.milliseconds:.1f} ms an image (checkpoint on torch {c.milliseconds_checkpoint:.1f})"
    if c.tied_flips:
        flips = round((1 - c.top1_agreement) * c.images)
        ties = f" ({c.tied_flips} of {flips} flips are ties, no faults)"
    if c.accuracy is not None and c.accuracy_checkpoint is not None:
        accuracy = f", accuracy {c.accuracy:.2%} ({c.accuracy_checkpoint:.2%})"
    return (
        f"{c.artefact} on {c.runtime}, {c.megabytes:.1f} MB{speed}: "
        f"top-1 agreement {c.top1_agreement:.2%} of {counted(c.images, 'image')}{ties}{accuracy}, logits differ by "
        f"{c.max_logit_difference:.1e} at most (torch's own fp32 error {c.torch_error:.1e}), KL {c.kl_divergence:.1e}, "
        f"log loss {c.log_loss:.5f} ({c.log_loss_checkpoint:.5f}): {'; '.join(c.faults) or 'within the limits'}"
    )


def _cell(key: str, value: Any) -> str:
    if key in _SHARES and value is not None:
        return f"{value:.2%}"
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [dict(row) for row in rows if row["artefact"] and set(row) >= _KEPT]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConvertError(f"{path}: is no report of `convert` ({error}); move it away") from error
