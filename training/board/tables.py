"""The rows of the board's tables, as the templates show them. No HTML here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from config.text import duration
from training.board.runs import Fold, Run
from training.campaign import leaderboard

_DIFFERENT, _LONGEST = 3, 40  # settings that a row shows, characters of a value
_WIDE, _HIGH = 200, 48  # of a small curve, in its own units


def ranked(runs: Sequence[Run]) -> list[Run]:
    """Those with finished folds by macro-F1, the best first; then those with an epoch, then all others by name."""

    def order(run: Run) -> tuple[bool, bool, float, str]:
        score = run.mean("macro_f1")
        known = bool(np.isfinite(score))
        return not (known and run.done), not known, -score if known else 0.0, run.key

    return sorted(runs, key=order)


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row a run, in this order; `different` are settings in which it differs from the first."""
    return [
        {
            "run": run,
            "model": run.settings.get("model", ""),
            "size": run.settings.get("data.image_size"),
            "scores": [run.mean(name) for name in leaderboard.METRICS],
            "spread": run.spread("macro_f1"),
            "so_far": bool(run.scored) and not run.done,
            "epochs": round(float(np.mean([fold.epochs for fold in run.scored]))) if run.scored else 0,
            "time": duration(run.seconds()) if run.done else "",
            "different": changed[:_DIFFERENT],
            "more": changed[_DIFFERENT:],
        }
        for run in runs
        for changed in [differences(runs[0], run)]
    ]


def differences(best: Run, run: Run) -> list[tuple[str, str, str]]:
    """The settings that change the result and differ: name, value of `run`, value of `best`."""
    keys = leaderboard.different(best.deciding, run.deciding)
    return [(key, _shown(run.deciding.get(key, "")), _shown(best.deciding.get(key, ""))) for key in keys]


def _shown(value: Any) -> str:
    """A setting in few characters."""
    text = "null" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def live(run: Run) -> dict[str, Any]:
    """How far a run is: the share that is done, words for it, and a small curve of the folds that train now."""
    wanted = run.settings.get("train.epochs")
    epochs = wanted if isinstance(wanted, int) else 0
    active = [fold for fold in run.folds if fold.state == "training"]
    active = active or [fold for fold in run.folds if fold.state == "waiting"][:1]
    planned = max(run.planned, len(run.folds), 1)
    done = sum(1.0 if fold.state == "finished" else min(_done_share(fold, epochs), 1.0) for fold in run.folds)
    return {
        "run": run,
        "share": done / planned,
        "folds": f"{len(run.done)} of {planned} folds done",
        "active": [{"number": fold.number, "words": _words(fold, epochs)} for fold in active],
        "curves": [_curve(fold.curve) for fold in active if len(fold.curve) > 1],
    }


def _done_share(fold: Fold, epochs: int) -> float:
    if fold.now.get("updates"):
        return float(fold.now["update"]) / float(fold.now["updates"])
    return fold.epochs / epochs if epochs else 0.0


def _words(fold: Fold, epochs: int) -> str:
    now = fold.now
    if fold.state == "waiting":
        return "is being prepared"
    if not now:
        return f"epoch {fold.epochs + 1} of {epochs}"
    parts = [f"epoch {now['epoch']} of {epochs}", f"update {now['update']} of {now['updates']}"]
    parts += [f"loss {now['loss']:.4f}"] if now.get("loss") is not None else []
    parts += [f"{now['images_per_second']:.0f} images/s"]
    parts += [f"at most {duration(now['seconds_left'])} left"] if now.get("seconds_left") else []
    return ", ".join(parts)


def _curve(values: Sequence[float]) -> str:
    """The points of an SVG polyline from the bottom (the lowest value) to the top."""
    values = [value for value in values if np.isfinite(value)] or [0.0]
    low, high = min(values), max(values)
    step, scale = _WIDE / max(len(values) - 1, 1), _HIGH / ((high - low) or 1)
    return " ".join(f"{k * step:.1f},{_HIGH - (value - low) * scale:.1f}" for k, value in enumerate(values))


def folds(run: Run) -> list[dict[str, Any]]:
    """A row a fold."""
    return [
        {
            "fold": fold,
            "scores": [fold.result.get(name) for name in leaderboard.METRICS],
            "best": fold.result.get("best_epoch"),
            "time": duration(fold.result["seconds"]) if "seconds" in fold.result else "",
        }
        for fold in run.folds
    ]


def campaign(run: Run, members: Sequence[Run]) -> dict[str, Any]:
    """A row of a campaign: how many of its members are trained, and the best of them."""
    best = [fold for fold in ranked(members) if fold.done][:1]
    finished = sum(member.state == "finished" for member in members)
    return {"run": run, "finished": finished, "planned": run.planned, "best": best[0] if best else None}


def trials(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row a trial of a member's search, the best first, with the settings that are not the same in all of them."""
    ordered = ranked(runs)
    keys = sorted({key for run in ordered for key, _, _ in differences(ordered[0], run)})
    return [
        {
            "run": run,
            "score": run.mean("macro_f1"),
            "so_far": not run.done,
            "epochs": max((fold.epochs for fold in run.folds), default=0),
            "values": [(key, _shown(run.deciding.get(key))) for key in keys],
        }
        for run in ordered
    ]


def searches(trials_of: Sequence[Run]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The trials of a campaign by the member that they are for."""
    names = dict.fromkeys(run.path.parent.name for run in trials_of)
    return [(name, trials([run for run in trials_of if run.path.parent.name == name])) for name in names]
