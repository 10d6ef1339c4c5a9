"""What PATH may be: a checkpoint of either engine, a run with its folds, or an ensemble file. No framework here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from backends.contract import Weights
from config.errors import ConvertError
from infer import ensemble as ensembles
from infer import predictors
from infer.ensemble import Ensemble
from infer.member import Member, check_classes
from infer.predictors.checkpoint import read_card, spec_of
from models import manifest, registry
from models import weights as weights_file
from models.card import Card, Preprocessing

_BEST = "best"


@dataclass(frozen=True)
class Part:
    """One network: canonical weights, its card, and its share and temperature in the mixture."""

    weights: Weights
    card: Card
    weight: float = 1.0
    temperature: float = 1.0


@dataclass(frozen=True)
class Source:
    """What becomes one artefact. `card` is the artefact's own; `ensemble` is None for a single checkpoint."""

    path: Path
    card: Card
    parts: tuple[Part, ...]
    ensemble: Ensemble | None = None

    @property
    def stem(self) -> str:
        """The artefact's name: `fold_0/best` gives `fold_0_best`."""
        whole = self.path.resolve()
        if self.ensemble is not None:
            return whole.stem
        return f"{whole.parent.name}_{whole.name}" if whole.parent.name.startswith("fold_") else whole.name

    @property
    def folder(self) -> Path:
        """Where artefacts go by default: the folder that the source lies in."""
        return self.path.parent if self.path.name else self.path.resolve().parent


def read(path: Path) -> list[Source]:
    """The sources that `path` names: each fold's best checkpoint of a run, else one.

    Every file is checked against its manifest. Raises `ConvertError`, `CheckpointError`, `WeightsError`.
    """
    if path.suffix in (".yaml", ".yml"):
        return [_ensemble(path)]
    folds = sorted(path.glob(f"fold_*/{_BEST}"), key=lambda p: _number(p.parent.name))
    if (path / "config.yaml").is_file() and folds:
        return [_checkpoint(fold) for fold in folds]
    if path.name.startswith("fold_") and (path / _BEST).is_dir():
        return [_checkpoint(path / _BEST)]
    return [_checkpoint(path)]


def _checkpoint(path: Path) -> Source:
    part = _part(path, str(path))
    return Source(path, part.card, (part,))


def _part(path: Path, said: str) -> Part:
    """The weights of a checkpoint folder, its EMA where it has one, and its card."""
    runtime = predictors.choose(path)
    if runtime not in predictors.ENGINES:
        raise ConvertError(f"{said}: is an artefact already; give the checkpoint that it was made of")
    card = read_card(path)
    if card.trained_with == "numpy":
        raise ConvertError(f"{said}: is the numpy engine's linear model; only torch and MLX checkpoints are converted")
    if spec_of(card, said).family == registry.ZOO:
        raise ConvertError(f"{said}: {card.model} is MLX's alone, no torch graph of it exists to convert")
    manifest.verify(path)
    averaged = path / "ema.safetensors"
    arrays, _ = weights_file.read(averaged if averaged.exists() else path / weights_file.MODEL_FILE)
    return Part(arrays, card)


def _ensemble(path: Path) -> Source:
    if not path.exists():
        raise ConvertError(f"{path}: there is no such ensemble file")
    ensemble = ensembles.read(path)
    if not ensemble.plain:
        raise ConvertError(
            f"{path}: was fitted with more than weights and temperatures (ranks, a stack, vector or isotonic"
            " calibration, a lowest probability, temperatures after the views, another merge of them, or second heads),"
            " which no single artefact holds;"
            " fit one without these, or convert the members one by one"
        )
    members = [member for member in ensemble.members if member.weight > 0]
    parts = tuple(_weighted(path, member) for member in members)
    check_classes([(str(m), p.card.class_names) for m, p in zip(members, parts, strict=True)])
    inputs = {_pixels(part.card) for part in parts}
    if len(inputs) > 1:
        found = "; ".join(
            f"{p.size} px, {p.fit}, {p.interpolation}, crop_pct {p.crop_pct:g}" for p in sorted(inputs, key=str)
        )
        raise ConvertError(
            f"{path}: its members want differently prepared images ({found}), and one file takes one image batch; "
            "make an ensemble file of those that agree, or convert the members one by one"
        )
    names = ", ".join(dict.fromkeys(part.card.model for part in parts))
    card = Card(f"ensemble of {len(parts)}: {names}", parts[0].card.class_names, inputs.pop())
    return Source(path, card, parts, ensemble)


def _weighted(path: Path, member: Member) -> Part:
    part = _part(member.path, f"{path}: its member {member.path}")
    return dataclasses.replace(part, weight=member.weight, temperature=member.temperature)


def _pixels(card: Card) -> Preprocessing:
    """What an image is prepared to; mean and standard deviation are inside the graph."""
    return dataclasses.replace(card.preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def _number(name: str) -> int:
    digits = name.removeprefix("fold_")
    return int(digits) if digits.isdecimal() else 0
