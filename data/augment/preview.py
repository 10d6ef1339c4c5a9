"""The contact sheet: what training will see of some images, beside what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from config.errors import ConfigError, DataError
from config.places import atomic_write
from config.schema import Settings
from data import sources
from data.augment import transforms
from data.decode.image import decode
from data.loading.sampler import occurrences
from data.loading.samples import Transform
from data.pixels import Pixels
from data.resize import letterbox, squash
from data.rng import philox
from models import registry
from models.card import Preprocessing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_LEAST_CELL, _MOST_CELL = 112, 224  # pixels on the sheet
_GAP, _LINE = 6, 20
_PAPER, _INK = (255, 255, 255), (0, 0, 0)
_TYPICAL = "convnext_base"  # whose preprocessing is shown where the model is auto: 224 pixels


class Column(NamedTuple):
    """A column of the sheet; its draws are keyed by `epoch` and `again`, as the loader keys a repeated sample."""

    title: str
    transform: Transform
    epoch: int
    again: int


def write(settings: Settings, out: Path, images: int = 8, columns: int = 8, ops: bool = False) -> Path:
    """Write a picture with a row for each of `images` images: the original, then what training sees of it.

    The columns are epochs, spread over the training; with `ops`, the operations that may act, each alone. The seed
    decides the images and the draws. Raises `ConfigError` for an `out` that is no picture, `DataError` for bad images.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{out}: a picture's name ends in {', '.join(SUFFIXES)}; choose another --out")
    try:
        table = sources.load(settings.data)
    except DataError:  # no folder of training images: all images are shown
        table = sources.load_test(settings.data)
    name = _TYPICAL if settings.model == "auto" else settings.model
    prep = registry.get(name, image_size=settings.data.image_size).preprocessing
    prep = replace(prep, fit=settings.data.resize_mode or prep.fit, pad=settings.data.pad)
    draws = _columns(settings, prep, None if ops else columns)
    chosen = np.sort(philox(settings.seed, "preview").permutation(len(table.paths))[:images])
    # Small images are enlarged a whole number of times, large ones shrunk.
    cell = prep.size * -(-_LEAST_CELL // prep.size) if prep.size < _LEAST_CELL else min(prep.size, _MOST_CELL)
    rows = {}
    for i in chosen.tolist():
        label = f"  ({table.class_names[table.labels[i]]})" if table.labels[i] >= 0 else ""
        rows[f"{table.ids[i]}{label}"] = _row(settings, table, i, draws, cell)
    sheet = _sheet(rows, ["original", *(column.title for column in draws)], cell)
    _, data = cv2.imencode(out.suffix, cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, data.tobytes())
    return out


def _columns(settings: Settings, prep: Preprocessing, count: int | None) -> list[Column]:
    """`count` epochs, or each operation alone."""
    if count is None:
        alone = transforms.alone(settings.augment, prep)
        if not alone:
            raise ConfigError("these settings let no operation act; set augment.level or augment.ops")
        return [Column(name, transform, 0, 0) for name, transform in alone.items()]
    epochs = np.linspace(0, settings.train.epochs - 1, count).round().astype(np.int64)
    changes, repeats = transforms.by_epoch(settings.augment, prep, settings.train.epochs), occurrences(epochs).tolist()
    return [
        Column(f"epoch {i + 1}", changes.at(i), i, again) for i, again in zip(epochs.tolist(), repeats, strict=True)
    ]


def _row(settings: Settings, table: sources.Table, sample: int, columns: Sequence[Column], cell: int) -> list[Pixels]:
    image = decode(table.paths[sample], settings.data.pixel_limit, to_srgb=settings.data.icc_to_srgb)
    cells = [letterbox(image, cell)]
    for column in columns:
        drawn = column.transform(image, philox(settings.seed, "augment", column.epoch, sample, column.again))
        small = len(drawn) < cell
        cells.append(cv2.resize(drawn, (cell, cell), interpolation=cv2.INTER_NEAREST) if small else squash(drawn, cell))
    return cells


def _sheet(rows: Mapping[str, Sequence[Pixels]], titles: Sequence[str], cell: int) -> Pixels:
    """uint8 RGB: the titles, and beneath them for each row its label and its cells."""
    pitch = cell + _GAP
    sheet = Image.new("RGB", (_GAP + len(titles) * pitch, 2 * _GAP + _LINE + len(rows) * (_LINE + pitch)), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * pitch, _GAP), title, _INK, font)
    for number, (label, cells) in enumerate(rows.items()):
        top = _GAP + _LINE + number * (_LINE + pitch)
        draw.text((_GAP, top + 2), label, _INK, font)
        for column, image in enumerate(cells):
            sheet.paste(Image.fromarray(image), (_GAP + column * pitch, top + _LINE))
    return np.asarray(sheet)
