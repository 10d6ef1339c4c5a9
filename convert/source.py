"""Reads what PATH names: a checkpoint of either engine, a run, or an ensemble file. No framework is imported."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backends.contract import Weights
from config.errors import ConvertError
from ensemble import ensemble_file as ensembles
from ensemble import fitted_params, postprocess
from ensemble.calibration.maps import Isotonic
from ensemble.ensemble_file import Ensemble
from ensemble.fitted_params import FittedParams
from infer import runtimes
from infer.runtimes import checkpoint
from models import manifest, pretrained, registry
from models.card import Card, Preprocessing, check_classes, read_card
from models.weights.loading import read as read_weights

_BEST = "best"
_OTHERWISE = "fit one without it, or convert the members one by one"


@dataclass(frozen=True)
class Part:
    """One network: the file of its weights, its card, and which of the forms of an image it sees."""

    file: Path
    card: Card
    input: int = 0

    def weights(self) -> Weights:
        """The canonical weights, read anew: an ensemble's together may be more than the memory holds twice."""
        return read_weights(self.file)[0]


@dataclass(frozen=True)
class Source:
    """The source of one artefact. `card` is that of the artefact; `ensemble` is None for a single checkpoint.

    `pretrained` is a model's name or a weights file in place of a checkpoint.

    The parts are the ensemble's members, `groups` the indices of those of each run, `layers` the parameters fitted
    beyond weights and temperatures. `resized` are the forms that the artefact computes from its one image (see
    `one_image`).
    """

    path: Path
    card: Card
    parts: tuple[Part, ...]
    ensemble: Ensemble | None = None
    resized: tuple[Preprocessing, ...] = ()
    groups: Sequence[Sequence[int]] = ()
    layers: FittedParams = field(default_factory=FittedParams)
    pretrained: bool = False

    @property
    def stem(self) -> str:
        """The artefact's name: `fold_0/best` gives `fold_0_best`."""
        if self.pretrained:
            return pretrained.stem(str(self.path))
        resolved = self.path.resolve()
        if self.ensemble is not None:
            return f"{resolved.stem}_one" if self.resized else resolved.stem
        return f"{resolved.parent.name}_{resolved.name}" if resolved.parent.name.startswith("fold_") else resolved.name

    @property
    def folder(self) -> Path:
        """The default folder of artefacts: the one that holds the source."""
        if self.pretrained and not self.path.exists():
            return Path()
        return self.path.parent if self.path.name else self.path.resolve().parent


def read(path: Path) -> list[Source]:
    """The sources that `path` names: each fold's best checkpoint of a run, else one.

    Every file is checked against its manifest. Raises `ConvertError`, `CheckpointError`, `WeightsError`.
    """
    if path.suffix in (".yaml", ".yml"):
        return [_ensemble(path)]
    if pretrained.is_source(str(path)):
        network = _part(pretrained.checkpoint(str(path)), str(path))
        return [Source(path, network.card, (network,), pretrained=True)]
    numbers = {fold: fold.parent.name.removeprefix("fold_") for fold in path.glob(f"fold_*/{_BEST}")}
    folds = sorted(numbers, key=lambda fold: int(numbers[fold]) if numbers[fold].isdecimal() else 0)
    if (path / "config.yaml").is_file() and folds:
        return [_checkpoint(fold) for fold in folds]
    if path.name.startswith("fold_") and (path / _BEST).is_dir():
        return [_checkpoint(path / _BEST)]
    return [_checkpoint(path)]


def one_image(source: Source) -> Source:
    """The same with one image input, from which the artefact makes the forms that its members want.

    It is as large as the sharpest form needs and shows as much as the widest. Raises `ConvertError` where members do
    not all crop, all squash or all letterbox.
    """
    forms = source.card.inputs
    if len(forms) == 1:
        return source
    if len({(prep.fit, prep.pad, prep.icc_to_srgb) for prep in forms}) > 1:
        kinds = ", ".join(sorted({prep.fit + " in sRGB" * prep.icc_to_srgb for prep in forms}))
        raise ConvertError(
            f"{source.path}: --single_input: its members fit images in different ways ({kinds}), which cannot be made "
            "of one image; leave it out, and the artefact takes each form as an input"
        )
    largest = max(forms, key=lambda prep: prep.size)
    side = max(math.floor(prep.size / prep.crop_pct) for prep in forms)
    widest = max(prep.crop_pct for prep in forms)
    widest_form = dataclasses.replace(largest, size=math.ceil(side * widest), crop_pct=widest)
    card = dataclasses.replace(source.card, preprocessing=widest_form, further_inputs=())
    return dataclasses.replace(source, card=card, resized=forms)


def _checkpoint(path: Path) -> Source:
    network = _part(path, str(path))
    return Source(path, network.card, (network,))


def _part(path: Path, shown: str) -> Part:
    """The weights of a checkpoint folder, its EMA where it has one, and its card."""
    runtime = runtimes.choose(path)
    if runtimes.RUNTIMES[runtime].suffix:
        raise ConvertError(f"{shown}: is an artefact already; give the checkpoint that it was made of")
    card = read_card(path)
    if registry.of_card(card, shown).family == registry.ZOO:
        raise ConvertError(f"{shown}: {card.model} is MLX's alone, no torch graph of it exists to convert")
    manifest.verify(path)
    return Part(checkpoint.weights_file(path), card)


def _ensemble(path: Path) -> Source:
    if not path.exists():
        raise ConvertError(f"{path}: there is no such ensemble file")
    ensemble = ensembles.read(path)
    if ensemble.combine == "ranks":
        raise ConvertError(f"{path}: mixes ranks, which no artefact holds; {_OTHERWISE}")
    members = [member for member in ensemble.members if member.weight > 0]
    ensemble = ensemble.model_copy(update={"members": tuple(members)})
    parts = tuple(_part(member.path, f"{path}: its member {member.path}") for member in members)
    check_classes([(str(m), p.card.class_names) for m, p in zip(members, parts, strict=True)])
    inputs = list(dict.fromkeys(p.card.preprocessing.pixels for p in parts))
    parts = tuple(dataclasses.replace(p, input=inputs.index(p.card.preprocessing.pixels)) for p in parts)
    names = ", ".join(dict.fromkeys(p.card.model for p in parts))
    first, *others = inputs
    card = Card(
        f"ensemble of {len(parts)}: {names}",
        parts[0].card.class_names,
        first,
        further_inputs=tuple(others),
        views=len(ensemble.views),
        class_counts=parts[0].card.class_counts,
    )
    groups, layers = postprocess.groups(members), FittedParams()
    if ensemble.layers:
        layers = fitted_params.read(ensemble.layers, len(card.class_names), len(groups))
    if isinstance(layers.map, Isotonic):
        raise ConvertError(f"{path}: has isotonic calibration, which no artefact holds; {_OTHERWISE}")
    return Source(path, card, parts, ensemble, groups=groups, layers=layers)
