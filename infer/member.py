"""Members as the command line names them: a path with its runtime, a model's name, or a weights file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ensemble import views
from ensemble.ensemble_file import Ensemble
from ensemble.member import Member
from infer.runtimes import RUNTIMES
from models import pretrained


def parse(text: str) -> Member:
    """`PATH` or `PATH@RUNTIME`, as on the command line; PATH may be a model's name or a weights file.

    Of these a checkpoint is made in the cache folder (see `models.pretrained`).
    """
    path, at, runtime = text.rpartition("@")
    if at and path and (runtime in RUNTIMES or not (Path(text).exists() or pretrained.is_source(text))):
        return Member(path=_artefact(path), runtime=runtime)
    return Member(path=_artefact(text))


def ensemble_of(members: Sequence[str], names: Sequence[str] = ("original",)) -> Ensemble:
    """Equal weights for members given as `PATH` or `PATH@RUNTIME`, with the views or presets `names`."""
    return Ensemble(members=tuple(map(parse, members)), views=views.expand(names))


def _artefact(text: str) -> Path:
    return pretrained.checkpoint(text) if pretrained.is_source(text) else Path(text)
