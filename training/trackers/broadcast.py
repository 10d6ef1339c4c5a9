"""Reports one fold's training to every tracker that is switched on: epochs, some images, the confusion matrix."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from numpy.typing import NDArray

from config.schema import Settings
from config.text import flat
from data.decode.image import decode
from data.loading.loader import Loaded
from models.card import read_card
from training import trackers
from training.loop import metrics
from training.loop.fold_data import FoldData
from training.report import plots
from training.run import results
from training.trackers import Title
from training.trackers.feed import Feed

_SAMPLES = 16
_SIDE = 160  # pixels of a sample's side at most


class Broadcast:
    """The feeds of one fold; nothing is opened where no tracker is switched on."""

    def __init__(self, settings: Settings, folder: Path, data: FoldData, say: Callable[[str], None]):
        title = title_of(settings, folder)
        self._folder, self._last = folder, 0
        self._feeds = [Feed(name, trackers.opener(name), title, say) for name in trackers.chosen(settings.track)]
        if self._feeds:
            grid = samples(data)  # here: a loader serves one thread
            for feed in self._feeds:
                feed.picture("samples", lambda: grid, 0)

    def epoch(self, number: int) -> None:
        """`history.jsonl` has the row of epoch `number`."""
        self._last = number
        for feed in self._feeds:
            feed.epoch(number)

    def close(self) -> None:
        """Send the confusion matrix of the best epoch, where it is new, and end."""
        finished = self._last and (self._folder / "oof.npz").exists()
        for feed in self._feeds:
            if finished:
                feed.picture("confusion", lambda: confusion(self._folder), self._last)
            feed.close()


def publish(settings: Settings, folder: Path, submission: Path) -> None:
    """Report a campaign's submission as a run of the same name: the scores that the fit expects of it, the number of
    its images, and the reliability diagram."""
    chosen = trackers.chosen(settings.track)
    if not chosen:
        return
    tracked = folder / "tracked" / submission.stem
    tracked.mkdir(parents=True, exist_ok=True)
    analysis, diagram = folder / "ensemble_analysis.json", folder / "ensemble_reliability.png"
    expected = json.loads(analysis.read_text())["expected"] if analysis.exists() else {}
    scores = {f"expected/{name}": score["value"] for name, score in expected.items()}
    with submission.open() as stream:
        images = sum(1 for _ in stream) - 1
    results.write_epochs(tracked, [{"epoch": 1, "images": images, **scores}])
    campaign = title_of(settings, folder)
    title = replace(campaign, name=submission.stem, group=campaign.name, folder=tracked)
    feeds = [Feed(name, trackers.opener(name), title, print) for name in chosen]
    for feed in feeds:
        feed.epoch(1)
        if diagram.exists():
            feed.picture("reliability", lambda: decode(diagram), 1)
    for feed in feeds:
        feed.close()


def title_of(settings: Settings, folder: Path) -> Title:
    """The title of a fold: its folder's path below that of the runs, such as RUN/fold_0, on every tracker."""
    home, run = settings.out.resolve(), folder.resolve()
    path = run.relative_to(home) if run.is_relative_to(home) else Path(*run.parts[-2:])
    group = path.parent.as_posix()
    plain = dict(flat(settings.model_dump(mode="json")))
    return Title(path.as_posix(), group, settings.track.project, home, folder, plain)


def samples(data: FoldData) -> NDArray[np.uint8]:
    """Training images as the first epoch augments them, side by side, uint8 `[H, W, 3]`."""
    loader = data.train[0]
    count = min(_SAMPLES, loader.batch_size, len(data.train_labels))
    order = np.linspace(0, len(data.train_labels) - 1, count).astype(np.int64)
    with closing(cast("Generator[Loaded]", loader.epoch(order))) as batches:
        images = next(batches).images[:count]
    side = min(data.stages[0].size, _SIDE)
    small = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images]
    small += [np.zeros_like(small[0])] * (-count % 4)
    return np.concatenate([np.concatenate(small[i : i + 4], axis=1) for i in range(0, len(small), 4)])


def confusion(folder: Path) -> NDArray[np.uint8]:
    """The confusion matrix of a fold's OOF predictions as a picture uint8 `[H, W, 3]`."""
    with np.load(folder / "oof.npz") as oof:
        counts = metrics.confusion(oof["logits"], oof["targets"])
    canvas = FigureCanvasAgg(plots.confusion_figure(counts, list(read_card(folder / "best").class_names)))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
