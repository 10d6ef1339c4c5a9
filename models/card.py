"""The card that every artefact carries: what to feed it and what its answers mean.

A checkpoint keeps it in its safetensors metadata, an ONNX file in its metadata, a Core ML package in its
user metadata, always as the one string `CARD_KEY -> JSON`. So no artefact can be fed wrongly.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from config.errors import ConfigError, WeightsError

CARD_KEY = "tandem.card"
CARD_VERSION = 1

Fit = Literal["crop", "squash", "letterbox"]
Interpolation = Literal["bilinear", "bicubic"]
Pad = Literal["grey", "background"]
Resampling = Literal["area", "pillow"]


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input.

    `size` is the square input in pixels. `fit` says how a photograph reaches it: `crop` resizes the short side
    to `floor(size / crop_pct)`, as timm does, and takes the centre; `squash` ignores the aspect ratio; `letterbox`
    pads, with grey or with the colour of the image's own border as `pad` says.
    `resampling` says how it is resized: `pillow` by Pillow's antialiased filter of `interpolation`, to the same pixels
    as timm's evaluation; `area` by means of areas where it shrinks, which is faster, and all there was before this
    field. `icc_to_srgb` says that colours of an embedded ICC profile become those of sRGB. `mean` and `std` are of RGB
    values scaled to [0, 1] and are applied on the device, not by the data layer.
    """

    size: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    crop_pct: float = 1.0
    fit: Fit = "crop"
    pad: Pad = "grey"
    resampling: Resampling = "area"
    icc_to_srgb: bool = False

    @property
    def pixels(self) -> Preprocessing:
        """What an image is prepared to before mean and std: equal for all that want the same pixels."""
        share = self.crop_pct if self.fit == "crop" else 1.0
        pad = self.pad if self.fit == "letterbox" else "grey"
        return replace(self, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_pct=share, pad=pad)


@dataclass(frozen=True)
class Card:
    """What a trained artefact is: its model, its preprocessing and its classes.

    `model` is a registry name; `model_options` are the options that rebuild the same architecture from it
    (see `models.registry.get`). `class_names` has one entry for each column of the logits, in order. An artefact that
    holds several networks may take each image in several forms: `further_inputs` are those after the first. `views` is
    how many views of each image an artefact makes itself and answers at once, which takes so much more memory.
    `class_counts` is the number of training images of each class, empty where it is unknown.
    """

    model: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    model_options: dict[str, Any] = field(default_factory=dict)
    trained_with: str = ""
    further_inputs: tuple[Preprocessing, ...] = ()
    views: int = 1
    class_counts: tuple[int, ...] = ()

    @property
    def inputs(self) -> tuple[Preprocessing, ...]:
        """How an image is prepared for each input, in order; one for all but artefacts of ensembles."""
        return (self.preprocessing, *self.further_inputs)

    @property
    def most_pixels(self) -> int:
        """Pixels of the largest thing that one image becomes: all views of its largest form."""
        return self.views * max(prep.size**2 for prep in self.inputs)

    def to_json(self) -> str:
        """One line of JSON with sorted keys; what an artefact does not have or know is left out, and what
        older cards do not name: a resampling by areas, and colours as they are stored."""
        omitted = {"further_inputs": (), "views": 1, "class_counts": (), "resampling": "area", "icc_to_srgb": False}
        document = asdict(
            self, dict_factory=lambda items: {k: v for k, v in items if k not in omitted or v != omitted[k]}
        )
        return json.dumps({"version": CARD_VERSION, **document}, sort_keys=True)

    @staticmethod
    def from_json(text: str | None, source: str) -> Card:
        """Read a card back; `source` names the artefact in the `WeightsError` of a bad one."""
        if not text:
            raise WeightsError(
                f"{source}: carries no Tandem card (preprocessing and class names); convert or save it with Tandem"
            )
        try:
            raw = json.loads(text)
            version = raw.pop("version")
            raw["preprocessing"] = _preprocessing(raw["preprocessing"])
            raw["further_inputs"] = tuple(map(_preprocessing, raw.get("further_inputs", ())))
            raw["class_names"] = tuple(raw["class_names"])
            raw["class_counts"] = tuple(map(int, raw.get("class_counts", ())))
            card = Card(**raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WeightsError(f"{source}: its Tandem card is unreadable ({error})") from error
        if card.class_counts and len(card.class_counts) != len(card.class_names):
            raise WeightsError(f"{source}: its Tandem card counts {len(card.class_counts)} classes of another number")
        if version != CARD_VERSION:
            raise WeightsError(f"{source}: card version {version}, this Tandem reads {CARD_VERSION}; update Tandem")
        return card


def _preprocessing(raw: dict[str, Any]) -> Preprocessing:
    return Preprocessing(**{**raw, "mean": tuple(raw["mean"]), "std": tuple(raw["std"])})


def read_card(path: Path) -> Card:
    """The card in a checkpoint's weights file, without reading the weights."""
    file = path / "model.safetensors"
    try:
        with safe_open(file, framework="np") as opened:
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{file}: is damaged or not a safetensors file ({error}); use another checkpoint") from error
    return Card.from_json(metadata.get(CARD_KEY), str(file))


def check_classes(named: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    """`ConfigError`, naming two members and the first difference, unless all have the same class list."""
    first, classes = named[0]
    for name, other in named[1:]:
        if other == classes:
            continue
        if sorted(other) == sorted(classes):
            difference = "the same classes in another order"
        elif len(other) != len(classes):
            difference = f"{len(other)} classes where the other has {len(classes)}"
        else:
            ours, theirs = next((a, b) for a, b in zip(classes, other, strict=True) if a != b)
            difference = f"class {theirs!r} where the other has {ours!r}"
        raise ConfigError(f"{name}: has {difference} ({first}); only members trained on the same classes can mix")
