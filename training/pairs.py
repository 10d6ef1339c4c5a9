"""`python -m training pair`: a second head for the classes that a run confuses most, trained on their images alone.

It is a run of two classes inside the first run's folder (`pairs/`), with the same folds: each of its folds begins with
the first run's network of that fold, so that its out-of-fold answers are as honest. Whether it helps, `python -m infer
fit --pairs` says.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import yaml

import backends
from config import load
from config.errors import ConfigError
from config.schema import Settings
from data import folds
from data.audit import actions, labels
from models import registry
from training import campaign as single
from training import failures, metrics, results, run
from training.cli import StopSignal
from training.fold import Interrupted
from training.members import Campaign
from training.prepare import FOLDS, with_vanished

PROG = "python -m training pair"


def most_confused(folder: Path, count: int) -> dict[tuple[str, str], int]:
    """The `count` pairs of classes that the run's out-of-fold answers mix up most, fewer where it mixes up fewer, and
    how many images are taken for the other class."""
    names = results.class_names(folder)
    _, logits, targets = results.oof(folder)
    matrix = labels.taken_for(metrics.predictions(logits), targets, len(names))
    found = labels.most_confused(matrix)[:count] if len(names) > 2 else []
    return {(names[a], names[b]): int(matrix[a, b] + matrix[b, a]) for a, b in found}


def train(
    folder: Path,
    classes: tuple[str, str],
    given: Sequence[str],
    head_only: bool,
    engine: str,
    stop_requested: Callable[[], bool],
) -> Path:
    """Train the second head of two classes, or go on with it; its run's folder.

    `given` are words of a command line, settings that replace the first run's; with `head_only` all layers but the
    classifier stay as they are. Raises what `training.campaign.run_all` raises.
    """
    settings = _settings(folder, classes, given, head_only)
    made = run.folder(settings, engine)
    with run.briefly(made):
        _keep_folds(folder, made, settings)
    return single.run_all(engine, settings, stop_requested)


def place(folder: Path, classes: tuple[str, str]) -> Path:
    """Where the second head of two classes lies, unless it was given another name."""
    return folder / run.PAIRS / _name(classes)


def command(folder: Path, made: Sequence[Path]) -> str:
    """The command that makes an ensemble of a run and its second heads."""
    return f"python -m infer fit {folder} --pairs {' '.join(map(str, made))} --out ensemble.yaml"


def _settings(folder: Path, classes: tuple[str, str], given: Sequence[str], head_only: bool) -> Settings:
    """The first run's settings, but for the classes, what names classes, and where it begins and lies."""
    _check(folder, classes)
    trained = [int(answers.fold.name.removeprefix("fold_")) for answers in results.answers(folder)]
    values = {
        "data.classes": list(classes),
        "weights": str(folder),
        "out": str(folder / run.PAIRS),
        "name": _name(classes),
        "resume": "auto",
        "folds.train": trained,
        "folds.file": None,
        "teacher.file": None,
        "teacher.extra_file": None,
        "teacher.extra_root": None,
        "class_imbalance.classes": [],
    }
    words = [word for key, value in values.items() for word in (f"--{key}", _word(value))]
    if isinstance(load.read(folder / run.CONFIG).loss.class_weights, tuple):
        words += ["--loss.class_weights", "none"]
    settings = load.parse(["--config", str(folder / run.CONFIG), *words, *given], PROG)
    frozen = {"optim.freeze_epochs": settings.train.epochs}
    return load.changed(settings, frozen, "--head_only") if head_only else settings


def _check(folder: Path, classes: tuple[str, str]) -> None:
    known = results.class_names(folder)
    unknown = [name for name in classes if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known[:8])}"
        raise ConfigError(f"classes: {unknown[0]!r} is no class of {folder}; {hint}")
    if classes[0] == classes[1] or len(known) < 3:
        raise ConfigError(f"classes: a second head is for two different classes of three or more, not {classes}")


def _word(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


def _name(classes: Sequence[str]) -> str:
    return "--".join(["pair", *(re.sub(r"[^\w.+-]+", "_", name) for name in classes)])[:128]


def _keep_folds(folder: Path, made: Path, settings: Settings) -> None:
    """The first run's folds of the images of the two classes, as the new run's own."""
    if (made / FOLDS).exists():
        return
    whole = actions.load(load.read(folder / run.CONFIG).data).table
    whole = with_vanished(settings, whole, folder)
    fold_of = folds.read(folder / FOLDS, whole)
    table = actions.load(settings.data).table
    of = dict(zip(whole.ids, fold_of, strict=True))
    folds.write(made / FOLDS, table, np.array([of[name] for name in table.ids]))


def of_campaign(campaign: Campaign) -> dict[Path, tuple[Path, tuple[str, str]]]:
    """Where the second heads that the settings ask for lie, or will: of which run, and of which classes.

    It is the best member's run of those that this engine can train; none where no member is trained yet.
    """
    count, metric = campaign.settings.ensemble.pairs, campaign.settings.stopping.metric
    scored = []
    for member in campaign.members:
        folder = campaign.run(member)
        refused = registry.engines(registry.get(member.settings.model)).get(campaign.engine)
        if count and not refused and (folder / run.FINISHED).exists():
            scored.append((results.fold_results(folder)["mean"][metric], folder))
    if not scored:
        return {}
    best = (min if metric == "log_loss" else max)(scored, key=lambda pair: pair[0])[1]
    return {place(best, classes): (best, classes) for classes in most_confused(best, count)}


def train_for(campaign: Campaign) -> None:
    """Train the second heads that a campaign asks for and has not; one that cannot be trained is left out, and said.

    Raises `Interrupted` where a stop is asked for.
    """
    for made, (folder, classes) in of_campaign(campaign).items():
        if (made / run.FINISHED).exists():
            continue
        print(f"second head of {' and '.join(classes)}, which {folder.name} confuses most")
        try:
            train(folder, classes, (), False, campaign.engine, campaign.stop_requested)
        except Interrupted:
            raise Interrupted(campaign.folder) from None
        except failures.ITS_OWN as error:
            print(f"left out: {error}")


def main(words: Sequence[str]) -> int:
    """Run the command; returns its exit code. `TandemError`s are the caller's."""
    asked, given = _parser().parse_known_args(list(words))
    engine = asked.engine or results.card(asked.run).trained_with
    backends.require(engine)
    found = {} if asked.classes else most_confused(asked.run, asked.pairs)
    for (a, b), count in found.items():
        print(f"{a} / {b}: {count} images taken for each other, out of fold")
    chosen = [(asked.classes[0], asked.classes[1])] if asked.classes else list(found)
    if not chosen:
        print(f"{asked.run}: no image is taken for another class out of fold; there is no pair to train")
        return 0
    stop = StopSignal()
    try:
        made = [train(asked.run, classes, given, asked.head_only, engine, stop) for classes in chosen]
    except Interrupted:
        print("stopped; everything is saved, the same command goes on")
        return 128 + stop.received
    print(f"to make an ensemble with what helps: {command(asked.run, made)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        PROG,
        description="Train a second head for the classes that a run confuses most: a network for these alone, which an "
        "ensemble asks where it finds them the most probable ones. It begins with the run's own networks and has its "
        "settings and folds.",
        epilog="Any setting may follow as --section.key VALUE, such as --train.epochs 10 or --data.image_size 480; "
        "train_torch.py --help lists them.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the trained run")
    parser.add_argument("--pairs", type=_count, default=1, help="how many pairs, the most confused first (default: 1)")
    parser.add_argument("--classes", nargs=2, metavar="CLASS", help="these two classes in place of the most confused")
    parser.add_argument(
        "--head_only", action="store_true", help="train the classifier alone, on the features as they are"
    )
    parser.add_argument("--engine", choices=("torch", "mlx"), help="default: the one that trained the run")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pairs; give 1 or more")
    return int(text)
