"""How near are our evaluation pixels to timm's, in probabilities of real weights, and what do they cost?

    python -m benchmarks.pixels --weights tf_efficientnet_lite0=FILE.safetensors --json
    python -m benchmarks.pixels --enlarge 4                 # the cost on larger photographs

The reference is timm's evaluation transform of the model on Pillow's decoding of the file, turned as its EXIF says. The
same timm network, in fp32, then gets the pixels of `EvalTransform` with each `resampling`. The cost is that of reading,
decoding and resizing one file in one thread, the median of `--repeats` turns of all arms in turn.
"""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from timm.data import create_transform, resolve_data_config

from benchmarks import common
from benchmarks.common import photographs, tell
from data.augment.transforms import EvalTransform
from data.decode.image import decode
from models import registry

Prepare = Callable[[Path], torch.Tensor]


def main() -> int:
    """Print the table or JSON."""
    parser = common.parser(__doc__, photographs=True)
    parser.add_argument("--weights", nargs="*", default=[], metavar="MODEL=FILE", help="safetensors under timm's names")
    parser.add_argument("--cost", default="resnet50", metavar="MODEL", help="whose preprocessing is timed")
    parser.add_argument("--enlarge", type=int, default=1, metavar="N", help="time photographs of N times the size")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        paths = sorted(photographs(arguments.data, 0, Path(place) / "images" / "class").iterdir())
        result: dict[str, Any] = {"images": len(paths)}
        for name, file in (entry.split("=", 1) for entry in arguments.weights):
            result[name] = differences(name, file, paths)
        if arguments.enlarge > 1:
            paths = [enlarged(path, arguments.enlarge) for path in paths[:60]]
        result["cost"] = cost(arguments.cost, paths, arguments.repeats)
    tell(arguments, result, "timm", "torch", "pillow", "opencv-python-headless")
    return 0


def differences(name: str, file: str, paths: Sequence[Path]) -> dict[str, Any]:
    """Greatest and mean difference of the probabilities from timm's, and the share of images of the same top-1."""
    network = timm.create_model(name, checkpoint_path=file).eval()
    arms = prepared_by(name)
    rows = {arm: probabilities(network, prepare, paths) for arm, prepare in arms.items()}
    timms = rows.pop("timm")
    return {
        arm: {
            "greatest": round(float(np.abs(ours - timms).max()), 6),
            "mean_of_greatest": round(float(np.abs(ours - timms).max(axis=1).mean()), 6),
            "same_top1": round(float((ours.argmax(axis=1) == timms.argmax(axis=1)).mean()), 4),
        }
        for arm, ours in rows.items()
    }


def prepared_by(name: str) -> dict[str, Prepare]:
    """From a file to the network's input, by timm and by each resampling."""
    prep = registry.get(name).preprocessing
    transform = create_transform(**resolve_data_config({}, model=timm.create_model(name)))

    def by_timm(path: Path) -> torch.Tensor:
        image = transform(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        assert isinstance(image, torch.Tensor)
        return image

    def by_us(own: EvalTransform) -> Prepare:
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (prep.mean, prep.std))

        def prepare(path: Path) -> torch.Tensor:
            pixels = torch.from_numpy(own(decode(path, shrink=own.shrink))).permute(2, 0, 1)
            return (pixels / 255 - mean) / std

        return prepare

    ours = {kind: by_us(EvalTransform(replace(prep, resampling=kind))) for kind in ("pillow", "area")}
    return {"timm": by_timm, **ours}


@torch.inference_mode()
def probabilities(network: torch.nn.Module, prepare: Prepare, paths: Sequence[Path]) -> NDArray[np.float32]:
    """float32 `[N, C]`."""
    batches = [torch.stack([prepare(path) for path in paths[i : i + 32]]) for i in range(0, len(paths), 32)]
    return np.concatenate([network(batch).softmax(dim=1).numpy() for batch in batches])


def cost(name: str, paths: Sequence[Path], repeats: int) -> dict[str, Any]:
    """Milliseconds an image of each arm, and their ratios to `area`."""
    arms = prepared_by(name)
    turns: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(repeats):
        for arm, prepare in arms.items():
            begun = time.perf_counter()
            for path in paths:
                prepare(path)
            turns[arm].append((time.perf_counter() - begun) / len(paths) * 1e3)
    taken = {arm: statistics.median(each) for arm, each in turns.items()}
    return {
        "model": name,
        "milliseconds": {arm: round(value, 2) for arm, value in taken.items()},
        "to_area": {arm: round(value / taken["area"], 2) for arm, value in taken.items()},
    }


def enlarged(path: Path, factor: int) -> Path:
    """The photograph at `factor` times its size, as a JPEG of quality 90, in the place of the file."""
    image = Image.open(io.BytesIO(path.read_bytes()))
    image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


if __name__ == "__main__":
    sys.exit(main())
