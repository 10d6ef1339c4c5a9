"""How fast is inference? The runner against timm's own procedure and against ttach, on the same files and weights.

    python -m benchmarks.infer --json                       # 5 members x 3 views, one run, all arms in turn

Arms, in turn, the median of each: for each of `--repeats` turns of the others four of `runner` and `forward`. What
others bring runs in a process of its own, with memory as its users have it:

- `runner`: `Runner.run`, as `python -m infer` does it, keeping what it frees.
- `timm`: the loop of timm's `inference.py` (public API: create_dataset, create_loader) for every member and view.
- `ttach`: timm's loader over the files once for each member, with ttach's ClassificationTTAWrapper around the model.
- `forward`: the bare sum of the forward passes, pixels prepared before the clock starts, in the runner's own process:
  what nothing can undercut; `overhead` is what the runner takes beyond it.
- `plain`: the same in the others' process, as torch comes; `ratio_plain` is it over the runner.

The greatest difference of their probabilities is told. Also one member and view in torch eager, torch compiled and ONNX
Runtime. Results: docs/engineering/measurements.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import ttach
from numpy.typing import NDArray
from timm.data import create_dataset, create_loader

from backends.torch import model as networks
from backends.torch.step import Input
from benchmarks import common
from benchmarks.common import Peer, photographs
from config import heap
from convert.graph import torch_network
from convert.onnx import export as to_onnx
from data.augment.transforms import EvalTransform
from data.decode.image import decode
from infer import runtimes
from infer.member import ensemble_of
from infer.runner import Runner
from models import manifest, registry
from models.card import CARD_KEY, Card, Preprocessing, read_card
from models.weights import loading

# What ttach's Rotate90 makes of an image, under both names.
VIEWS, ANGLES = ("original", "rot90", "rot180"), (0, 90, 180)
CLASSES = 10
OURS, TURNS = ("runner", "forward"), 4  # in turn, since what they differ by is less than one turn from the next
Rows = NDArray[np.float32]


def main() -> int:
    """Print the table or JSON."""
    parser = common.parser(__doc__, photographs=True)
    parser.add_argument("--images", type=int, default=2000, help="files; photographs are repeated to reach it")
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--size", type=int, default=160, help="image size in pixels")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="decoding threads, and timm's worker processes")
    parser.add_argument("--repeats", type=int, default=1, help="turns of the others, four of ours in each")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    heap.retain_freed_memory()  # as the command does
    with tempfile.TemporaryDirectory() as folder:
        figures = speed(arguments, Path(folder))
    common.report(arguments, figures, TURNS * arguments.repeats, "torch", "timm", "ttach")
    return 0


def speed(arguments: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Seconds of each arm, the median of its turns, and their ratios."""
    folder = photographs(arguments.data, arguments.images, place / "images" / "class")
    paths = sorted(folder.iterdir())
    members = [checkpoint_of(arguments, place / f"member_{seed}", seed) for seed in range(arguments.members)]
    models, prepared = [network(member) for member in members], pixels(paths, arguments.size)
    opened = Runner(ensemble_of([f"{member}@torch" for member in members], VIEWS))
    with opened as runner, Peer(Others, members, folder.parent, arguments) as others:
        arms: dict[str, Callable[[], Rows]] = {
            "runner": lambda: run(runner, paths, arguments),
            "forward": lambda: forward(models, prepared, arguments),
            **{name: lambda name=name: others(name) for name in ("plain", "ttach", "timm")},
        }
        run(runner, paths[: arguments.batch_size], arguments)  # so that the memory of both is there
        forward(models, prepared[: arguments.batch_size], arguments)
        turns, answers = measure(arms, arguments.repeats)
    seconds = {name: statistics.median(taken) for name, taken in turns.items()}
    spread = {name: round(max(turns[name]) / min(turns[name]), 3) for name in OURS}
    ratios = {f"ratio_{name}": round(seconds[name] / seconds["runner"], 2) for name in ("timm", "ttach", "plain")}
    overhead = round(seconds["runner"] / seconds["forward"] - 1, 3)
    agree = {name: round(float(np.abs(rows - answers["runner"]).max()), 4) for name, rows in answers.items()}
    rounded = {name: round(value, 2) for name, value in seconds.items()}
    engines = by_engine(arguments, members[0], prepared, place)
    return {
        "seconds": rounded,
        **ratios,
        "overhead": overhead,
        "spread": spread,
        "difference": agree,
        "one_member_ms": engines,
    }


def measure(arms: dict[str, Callable[[], Rows]], repeats: int) -> tuple[dict[str, list[float]], dict[str, Rows]]:
    """The seconds of each arm's turns, several of ours for each of the others', and what it answered."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    answers = {}
    for name in [*OURS * TURNS, *(name for name in arms if name not in OURS)] * repeats:
        start = time.perf_counter()
        answers[name] = arms[name]()
        seconds[name].append(time.perf_counter() - start)
        print(f"{name}: {seconds[name][-1]:.1f} s", file=sys.stderr)
    return seconds, answers


def run(runner: Runner, paths: list[Path], arguments: argparse.Namespace) -> Rows:
    """The runner's probabilities, float32 `[N, C]`."""
    parts = runner.run(paths, arguments.batch_size, arguments.workers)
    return np.concatenate([part.probabilities for part in parts])


@torch.inference_mode()
def forward(
    models: list[tuple[torch.nn.Module, Input]], images: NDArray[np.uint8], arguments: argparse.Namespace
) -> Rows:
    """Every member's forward pass over every view of prepared pixels, uint8 `[N, S, S, 3]`, normalised in it."""
    rows = []
    for start in range(0, len(images), arguments.batch_size):
        total = 0.0
        for turns in range(len(VIEWS)):
            batch = torch.from_numpy(
                np.ascontiguousarray(np.rot90(images[start : start + arguments.batch_size], turns, (1, 2)))
            )
            for model, prepare in models:
                total = total + model(prepare(batch)).softmax(1)
        rows.append((total / len(models) / len(VIEWS)).numpy())
    return np.concatenate(rows)


class Others:
    """The arms of other libraries, with the same networks; the pixels of `plain` are prepared here at once."""

    def __init__(self, members: list[Path], root: Path, arguments: argparse.Namespace):
        warnings.simplefilter("ignore")
        self._networks, self._root, self._arguments = [network(member) for member in members], root, arguments
        self._pixels = pixels(sorted((root / "class").iterdir()), arguments.size)

    def plain(self) -> Rows:
        """`forward`."""
        return forward(self._networks, self._pixels, self._arguments)

    def timm(self) -> Rows:
        """timm's inference.py for each member and view: its data set, its loader, its loop, probabilities kept."""
        total = 0.0
        for model, _ in self._networks:
            for turns in range(len(VIEWS)):
                batches = timm_batches(self._root, self._arguments)
                rows = [model(torch.rot90(images, turns, (2, 3))).softmax(-1).numpy() for images in batches]
                total = total + np.concatenate(rows)
        return np.asarray(total / len(self._networks) / len(VIEWS), np.float32)

    def ttach(self) -> Rows:
        """ttach around each member, the files read once for each."""
        views = ttach.Compose([ttach.Rotate90(angles=list(ANGLES))])
        total = 0.0
        for model, _ in self._networks:
            wrapped = ttach.ClassificationTTAWrapper(torch.nn.Sequential(model, torch.nn.Softmax(1)), views)
            batches = timm_batches(self._root, self._arguments)
            total = total + np.concatenate([wrapped(images).numpy() for images in batches])
        return np.asarray(total / len(self._networks), np.float32)


def timm_batches(root: Path, arguments: argparse.Namespace) -> Iterator[torch.Tensor]:
    """float32 `[B, 3, S, S]` of timm's evaluation loader."""
    loader = create_loader(
        create_dataset("", root),
        input_size=(3, arguments.size, arguments.size),
        batch_size=arguments.batch_size,
        use_prefetcher=False,
        interpolation="bilinear",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        crop_pct=1.0,
        num_workers=arguments.workers,
    )
    with torch.inference_mode():
        for images, _ in loader:
            yield images


def by_engine(arguments: argparse.Namespace, member: Path, images: NDArray[np.uint8], place: Path) -> dict[str, float]:
    """Milliseconds an image of one member and view, the best of the repeats, on the CPU."""
    file = place / "member.onnx"
    card = read_card(member)
    network = torch_network.classifier(loading.read(member / "model.safetensors")[0], card)
    to_onnx.write(network, card, file)
    opened = {
        "torch eager": lambda: runtimes.open(member, "torch", device="cpu"),
        "torch eager channels_last": lambda: runtimes.open(member, "torch", device="cpu", channels_last=True),
        "torch compiled": lambda: runtimes.open(member, "torch", device="cpu", compile=True),
        "onnxruntime": lambda: runtimes.open(file, "onnx", providers=("cpu",)),
    }
    batch = images[: arguments.batch_size]
    found = {}
    for name, start in opened.items():
        predictor = start()
        predictor.logits(batch)
        best = float("inf")
        for _ in range(3 + arguments.repeats):
            begun = time.perf_counter()
            predictor.logits(batch)
            best = min(best, time.perf_counter() - begun)
        found[name] = round(1000 * best / len(batch), 3)
        predictor.close()
    return found


def pixels(paths: list[Path], size: int) -> NDArray[np.uint8]:
    """uint8 `[N, S, S, 3]`, decoded and resized as the runner does."""
    transform = EvalTransform(Preprocessing(size=size))
    return np.stack([transform(decode(path)) for path in paths])


def checkpoint_of(arguments: argparse.Namespace, folder: Path, seed: int) -> Path:
    """A checkpoint of fresh weights, drawn from `seed`."""
    names = tuple(f"class_{number}" for number in range(CLASSES))
    card = Card(arguments.model, names, Preprocessing(size=arguments.size), {"image_size": arguments.size}, "torch")
    torch.manual_seed(seed)
    network = networks.build(registry.of_card(card, "benchmark"))
    folder.mkdir(parents=True)
    arrays = networks.to_arrays(networks.canonical_tensors(network))
    loading.write(folder / "model.safetensors", arrays, {CARD_KEY: card.to_json()})
    manifest.write(folder)
    return folder


def network(member: Path) -> tuple[torch.nn.Module, Input]:
    """The member's network in evaluation mode, and how pixels become its input."""
    spec = registry.of_card(read_card(member), str(member))
    built = networks.build(spec)
    networks.load_canonical(built, loading.read(member / "model.safetensors")[0], str(member))
    prep = spec.preprocessing
    return built.eval(), Input(torch.tensor(prep.mean), torch.tensor(prep.std), spec.in_chans, "fp32")


if __name__ == "__main__":
    sys.exit(main())
