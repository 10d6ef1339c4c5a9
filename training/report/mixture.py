"""The ensemble's section of the page: the members' weights, and the out-of-fold analysis of the fit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ensemble import ensemble_file
from infer.pages import figures
from infer.pages.thumbnails import with_thumbnails

_WORST = 12
_METRICS = {"macro_f1": "Macro-F1", "accuracy": "Accuracy", "log_loss": "Log loss"}


def described(path: Path, path_of: dict[str, Path]) -> dict[str, Any]:
    """The members of an ensemble file with their shares, heaviest first, how they mix, and the analysis beside it.

    `ConfigError` for a file that is no ensemble.
    """
    ensemble = ensemble_file.read(path)
    total = sum(member.weight for member in ensemble.members)
    members: list[dict[str, Any]] = [
        {
            "path": os.path.relpath(member.path, path.parent),
            "group": member.group,
            "runtime": member.runtime or "by its kind",
            "weight": member.weight,
            "share": member.weight / total,
        }
        for member in ensemble.members
    ]
    analysis = _analysis(path.with_name(f"{path.stem}_analysis.json"), path_of)
    groups: dict[str, float] = dict.fromkeys(analysis["runs"], 0.0) if analysis else {}
    for member in ensemble.members:
        groups[member.group] = groups.get(member.group, 0.0) + member.weight / total
    return {
        "name": path.name,
        "members": sorted(members, key=lambda member: member["share"], reverse=True),
        "groups": sorted(groups.items(), key=lambda pair: -pair[1]) if set(groups) - {""} else [],
        "temperature": ensemble.temperature,
        "combine": ensemble.combine,
        "views": ensemble.views,
        "analysis": analysis,
    }


def _analysis(path: Path, path_of: dict[str, Path]) -> dict[str, Any] | None:
    """The out-of-fold analysis of `python -m infer fit`, arranged for the page; None for an ensemble without a fit."""
    if not path.exists():
        return None
    raw = json.loads(path.read_text(encoding="utf-8"))
    calibration = raw["calibration"] if raw["calibration"] != "none" else "no calibration"
    rows = [(score, "alone" if score["name"] in raw["runs"] else "ensemble") for score in raw["scores"]]
    rows += [(raw["before"], "ensemble, before calibration")]
    rows += [(score, "calibration" + ", kept" * (score["name"] == calibration)) for score in raw["after"]]
    rows += [(score, "labels" + ", kept" * (score["name"] == f"labels by {raw['rule']}")) for score in raw["rules"]]
    return {
        "expected": [(title, raw["expected"][name]) for name, title in _METRICS.items() if name in raw["expected"]],
        "scores": [{**score, "what": what} for score, what in rows],
        "reliability": [(name, figures.bins(raw["reliability"][name])) for name in ("before", "after")],
        "histogram": figures.bars(raw["histogram"]),
        "runs": raw["runs"],
        "agreement": raw["agreement"] if len(raw["runs"]) > 1 else [],
        "confused": [
            {"true": row["true"], "said": row["predicted"], "n": row["count"], "share": row["count"] / row["of"]}
            for row in raw["confused"]
        ],
        "mistakes": with_thumbnails(raw["mistakes"][:_WORST], path_of) or raw["mistakes"][:_WORST],
        "notes": raw.get("notes", []),
    }
