"""How fast is inference? The runner against timm's own procedure and against ttach, on the same files and weights.

    python -m benchmarks infer --json                       # 5 members x 3 views, one run, all arms in turn

Arms, the median of four turns of `runner` and `forward` and one turn of each of the others. What others bring runs in a
process of its own, with memory as its users have it:

- `runner`: `Runner.run`, as `python -m infer` does it, keeping what it frees.
- `timm`: the loop of timm's `inference.py` (public API: create_dataset, create_loader) for every member and view.
- `ttach`: timm's loader over the files once for each member, with ttach's ClassificationTTAWrapper around the model.
- `forward`: the bare sum of the forward passes, pixels prepared before the clock starts, in the runner's own process:
  what nothing can undercut; `overhead` is what the runner takes beyond it.
- `plain`: the same in the others' process, as torch comes; `ratio_plain` is it over the runner.

`difference` is the greatest one of an arm's probabilities to the runner's. Also one member and view in torch eager,
torch compiled and ONNX Runtime. Results: docs/engineering/measurements.md.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import ttach
from numpy.typing import NDArray
from timm.data import create_dataset, create_loader

from backends.torch import model as networks
from backends.torch.step import Input
from benchmarks import common
from benchmarks.common import Peer, Result, comparison, option, photographs
from convert.graph import torch_network
from convert.onnx import export as to_onnx
from data.augment.transforms import EvalTransform
from data.decode.image import decode
from infer import runtimes
from infer.member import ensemble_of
from infer.runner import Runner
from models import manifest, registry
from models.card import CARD_KEY, Preprocessing, read_card
from models.weights import loading

# What ttach's Rotate90 makes of an image, under both names.
VIEWS, ANGLES = ("original", "rot90", "rot180"), (0, 90, 180)
TURNS = 4  # of the runner and the forward passes, which differ by less than one turn from the next
BATCH, WORKERS = 64, 2  # decoding threads, and timm's worker processes
Rows = NDArray[np.float32]
Network = tuple[torch.nn.Module, Input]  # and how pixels become its input


@comparison(
    "infer",
    common.PHOTOGRAPHS,
    option("--images", type=int, default=2000, help="files; photographs are repeated to reach it"),
    option("--model", default="test_resnet"),
    option("--size", type=int, default=160, help="image size in pixels"),
    option("--members", type=int, default=5),
)
def infer(arguments: argparse.Namespace, folder: Path) -> Result:
    """Seconds of each arm, the median of its turns, and their ratios."""
    warnings.simplefilter("ignore")
    size = arguments.size
    paths = photographs(arguments.data, arguments.images, folder / "images" / "class")
    members = [checkpoint_of(arguments.model, size, folder, seed) for seed in range(arguments.members)]
    turns, predictions = measured(members, paths, size)
    engines = by_engine(members[0], pixels(paths[:BATCH], size), folder / "member.onnx")
    seconds = {name: statistics.median(taken) for name, taken in turns.items()}
    difference = {name: np.abs(rows - predictions["runner"]).max() for name, rows in predictions.items()}
    figures = {
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        **{f"ratio_{name}": round(seconds[name] / seconds["runner"], 2) for name in ("timm", "ttach", "plain")},
        "overhead": round(seconds["runner"] / seconds["forward"] - 1, 3),
        "spread": {name: common.spread(turns[name]) for name in ("runner", "forward")},
        "difference": {name: round(float(value), 4) for name, value in difference.items()},
        "one_member_ms": engines,
    }
    return common.result(figures, TURNS, "torch", "timm", "ttach")


def measured(members: list[Path], paths: list[Path], size: int) -> tuple[dict[str, list[float]], dict[str, Rows]]:
    """The seconds of each arm's turns, and what it predicts, float32 `[N, C]`."""
    models, prepared, predictions = [network(member) for member in members], pixels(paths, size), dict[str, Rows]()

    def timed(name: str, predict: Callable[[], Rows]) -> Callable[[], float]:
        return lambda: common.seconds(lambda: predictions.update({name: predict()}))

    def run() -> Rows:
        return np.concatenate([chunk.probabilities for chunk in runner.run(paths, BATCH, WORKERS)])

    opened = Runner(ensemble_of([f"{member}@torch" for member in members], VIEWS))
    with opened as runner, Peer(Others, members, paths, size) as others:
        ours = {"runner": timed("runner", run), "forward": timed("forward", lambda: forward(models, prepared))}
        theirs = {name: timed(name, partial(others, name)) for name in ("plain", "ttach", "timm")}
        turns = common.in_turn(ours, TURNS) | common.in_turn(theirs, 1, warm_up=False)
    return turns, predictions


@torch.inference_mode()
def forward(models: list[Network], images: NDArray[np.uint8]) -> Rows:
    """Every member's forward pass over every view of prepared pixels, uint8 `[N, S, S, 3]`, normalised in it."""
    rows = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        views = [torch.from_numpy(np.rot90(batch, turns, (1, 2)).copy()) for turns in range(len(VIEWS))]
        each = [model(prepare(view)).softmax(1) for view in views for model, prepare in models]
        rows.append(torch.stack(each).mean(0).numpy())
    return np.concatenate(rows)


class Others:
    """The arms of other libraries, with the same networks; the pixels of `plain` are prepared here at once."""

    def __init__(self, members: list[Path], paths: list[Path], size: int):
        warnings.simplefilter("ignore")
        self._networks, self._root, self._size = [network(member) for member in members], paths[0].parents[1], size
        self._pixels = pixels(paths, size)

    def plain(self) -> Rows:
        """`forward`."""
        return forward(self._networks, self._pixels)

    def timm(self) -> Rows:
        """timm's inference.py for each member and view: its data set, its loader, its loop, probabilities kept."""

        def once(model: torch.nn.Module, turns: int) -> Rows:
            rows = [model(torch.rot90(images, turns, (2, 3))).softmax(-1).numpy() for images in self._batches()]
            return np.concatenate(rows)

        return np.mean([once(model, turns) for model, _ in self._networks for turns in range(len(VIEWS))], axis=0)

    def ttach(self) -> Rows:
        """ttach around each member, the files read once for each."""
        views = ttach.Compose([ttach.Rotate90(angles=list(ANGLES))])

        def once(model: torch.nn.Module) -> Rows:
            wrapped = ttach.ClassificationTTAWrapper(torch.nn.Sequential(model, torch.nn.Softmax(1)), views)
            return np.concatenate([wrapped(images).numpy() for images in self._batches()])

        return np.mean([once(model) for model, _ in self._networks], axis=0)

    def _batches(self) -> Iterator[torch.Tensor]:
        """float32 `[B, 3, S, S]` of timm's evaluation loader."""
        loader = create_loader(
            create_dataset("", self._root),
            input_size=(3, self._size, self._size),
            batch_size=BATCH,
            use_prefetcher=False,
            interpolation="bilinear",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            crop_pct=1.0,
            num_workers=WORKERS,
        )
        with torch.inference_mode():
            for images, _ in loader:
                yield images


def by_engine(member: Path, batch: NDArray[np.uint8], file: Path) -> dict[str, float]:
    """Milliseconds an image of one member and view, the best of some turns, on the CPU; `file` takes the ONNX."""
    card = read_card(member)
    to_onnx.write(torch_network.classifier(loading.read(member / "model.safetensors")[0], card), card, file)
    opened = {
        "torch eager": partial(runtimes.open, member, "torch", device="cpu"),
        "torch eager channels_last": partial(runtimes.open, member, "torch", device="cpu", channels_last=True),
        "torch compiled": partial(runtimes.open, member, "torch", device="cpu", compile=True),
        "onnxruntime": partial(runtimes.open, file, "onnx", providers=("cpu",)),
    }
    figures = {}
    for name, start in opened.items():
        predictor = start()
        predict = partial(predictor.logits, batch)
        predict()
        figures[name] = round(1000 * min(common.seconds(predict) for _ in range(TURNS)) / len(batch), 3)
        predictor.close()
    return figures


def pixels(paths: list[Path], size: int) -> NDArray[np.uint8]:
    """uint8 `[N, S, S, 3]`, decoded and resized as the runner does."""
    transform = EvalTransform(Preprocessing(size=size))
    return np.stack([transform(decode(path)) for path in paths])


def checkpoint_of(model: str, size: int, root: Path, seed: int) -> Path:
    """A checkpoint of fresh weights, drawn from `seed`."""
    folder = root / f"member_{seed}"
    folder.mkdir()
    _, card, weights = common.fresh(model, size, seed=seed)
    card = replace(card, preprocessing=Preprocessing(size=size))
    loading.write(folder / "model.safetensors", weights, {CARD_KEY: card.to_json()})
    manifest.write(folder)
    return folder


def network(member: Path) -> Network:
    """The member's network in evaluation mode, and how pixels become its input."""
    spec = registry.of_card(read_card(member), str(member))
    built = networks.build(spec)
    networks.load_canonical(built, loading.read(member / "model.safetensors")[0], str(member))
    prep = spec.preprocessing
    return built.eval(), Input(torch.tensor(prep.mean), torch.tensor(prep.std), spec.in_chans, "fp32")
