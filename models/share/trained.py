"""What is shared: a checkpoint, alone or as a fold of its run, with what the run measured. Read from files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from config import load
from config.errors import CheckpointError, ConfigError
from config.schema import Settings
from models import manifest, registry
from models.card import Card, read_card
from models.registry import ModelSpec
from models.weights import loading

_BEST = "best"


class Scores(NamedTuple):
    """What was measured on `images` labelled images: `of` says on which, `values` has accuracy, macro_f1, log_loss."""

    of: str
    split: str
    images: int
    values: dict[str, float]


@dataclass(frozen=True)
class Trained:
    """A checkpoint folder with its card and architecture; `settings` and `scores` where it lies in a run."""

    path: Path
    card: Card
    spec: ModelSpec
    settings: Settings | None
    scores: tuple[Scores, ...]

    @property
    def weights_file(self) -> Path:
        """The averaged weights where there are any, as prediction takes them."""
        averaged = self.path / loading.EMA_FILE
        return averaged if averaged.exists() else self.path / loading.MODEL_FILE


def read(path: Path, fold: int | None = None, evaluation: Path | None = None) -> Trained:
    """The best checkpoint of the run `path` (of its best fold, or of `fold`), or the checkpoint `path`.

    `evaluation` is a folder that `python -m infer evaluate` wrote about this checkpoint. Every file is checked against
    the manifest. Raises `ConfigError` for what timm has no network for, `CheckpointError` for what is no checkpoint.
    """
    if (path / load.CAMPAIGN).exists():
        raise ConfigError(f"{path}: is a campaign of several models; push one of its runs, {path}/members/NAME")
    chosen = _fold(path, fold) if (path / load.RUN).is_file() else path
    if chosen == path and fold is not None:
        raise ConfigError(f"--fold {fold}: {path} is no run with folds; leave it out")
    manifest.verify(chosen)
    card = read_card(chosen)
    spec = registry.of_card(card, str(chosen))
    _refuse(chosen, card, spec)
    best = chosen.resolve()
    run = best.parent.parent
    settings = load.read(run / load.RUN) if (run / load.RUN).is_file() else None
    scores = [*_of_fold(best), *([_of_evaluation(evaluation, best)] if evaluation else [])]
    return Trained(chosen, card, spec, settings, tuple(scores))


def _fold(run: Path, fold: int | None) -> Path:
    if fold is None:
        file = run / "fold_results.yaml"
        if not file.is_file():
            raise CheckpointError(f"{run}: is not finished (no {file.name}); finish it, or choose a fold with --fold")
        fold = int(yaml.safe_load(file.read_text(encoding="utf-8"))["best_fold"])
    best = run / f"fold_{fold}" / _BEST
    if not best.is_dir():
        there = ", ".join(sorted(p.parent.name.removeprefix("fold_") for p in run.glob(f"fold_*/{_BEST}"))) or "none"
        raise ConfigError(f"--fold {fold}: {run} has no such trained fold; there are {there}")
    return best


def _refuse(path: Path, card: Card, spec: ModelSpec) -> None:
    reasons = {
        f"{card.model} is mlx-image's and MLX's alone": spec.family == registry.ZOO,
        "its pooling (global_pool gem) has a learned power": spec.global_pool == "gem",
        f"it takes {spec.in_chans} channels": spec.in_chans != 3,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"{path}: timm has no such network: {reason}; share it as ONNX: python -m convert")


def _of_fold(best: Path) -> list[Scores]:
    """The scores of the fold's validation images, which no weight was fitted to, but the best epoch was chosen by."""
    result, oof = best.parent / "result.yaml", best.parent / "oof.npz"
    if best.name != _BEST or not result.is_file() or not oof.is_file():
        return []
    row = yaml.safe_load(result.read_text(encoding="utf-8"))
    with np.load(oof, allow_pickle=False) as held:
        images = len(held["targets"])
    values = {name: float(row[name]) for name in ("accuracy", "macro_f1", "log_loss")}
    return [Scores(f"validation images of fold {row['fold']}", "validation", images, values)]


def _of_evaluation(folder: Path, path: Path) -> Scores:
    file = folder / "metrics.json"
    try:
        held: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        member = Path(held["members"].rpartition(" (")[0])
        values = {name: float(held[name]) for name in ("accuracy", "macro_f1", "log_loss")}
        scores = Scores(f"{Path(held['data']).name}, {held['split']} split", held["split"], held["images"], values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        wanted = "give the --out of python -m infer evaluate"
        raise ConfigError(f"--evaluation {folder}: has no readable {file.name} ({error!r}); {wanted}") from error
    if path.parts[-2:] != member.parts[-2:]:
        raise ConfigError(
            f"--evaluation {folder}: is of {held['members']}, not of {path} alone; evaluate it: "
            f"python -m infer evaluate --member {path}"
        )
    return scores
