"""Weights & Biases: online where the user is logged in, else offline, for `wandb sync` of the run's folder."""

from __future__ import annotations

import netrc
import os
import uuid
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlparse

import numpy as np
import wandb
from numpy.typing import NDArray

from training.trackers import Title

_SECONDS = 30.0  # for the service to answer


class Wandb:
    """A run of Weights & Biases, whose id is stored so that it can be resumed."""

    rewinds = False

    def __init__(self, title: Title, state: Mapping[str, Any]):
        settings = wandb.Settings(silent=True, console="off", init_timeout=_SECONDS, finish_timeout=_SECONDS)
        self.state = {"id": state.get("id") or uuid.uuid4().hex[:12]}
        self._run = wandb.init(
            project=title.project,
            name=title.name,
            group=title.group,
            id=self.state["id"],
            resume="allow",
            dir=str(title.folder),
            config=dict(title.settings),
            mode=mode(settings),
            settings=settings,
            reinit="create_new",
        )
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """The figures over the epoch."""
        self._run.log({"epoch": number, **values})

    def picture(self, name: str, image: NDArray[np.uint8], epoch: int) -> None:
        """An image at an epoch."""
        self._run.log({"epoch": epoch, name: wandb.Image(image)})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


def mode(settings: wandb.Settings) -> Literal["online", "offline"] | None:
    """Offline unless there is a key to log in with; None, which leaves it to WANDB_MODE, where that is set."""
    if os.environ.get("WANDB_MODE"):
        return None
    return "online" if settings.api_key or os.environ.get("WANDB_API_KEY") or _in_netrc(settings) else "offline"


def _in_netrc(settings: wandb.Settings) -> bool:
    try:
        entry = netrc.netrc(os.environ.get("NETRC")).authenticators(urlparse(settings.base_url).netloc)
    except (OSError, netrc.NetrcParseError):
        return False
    return entry is not None


open = Wandb
