"""Every precision of three ImageNet networks on labelled photographs: `python -m benchmarks.precisions PHOTOS`.

PHOTOS is a folder of ImageNet photographs whose names begin with their WordNet id (`n01484850_great_white_shark.JPEG`).
They are drawn into two halves; each calibrates once while the other is judged, and the table adds the two up. Every
figure comes from `verify.json` of `python -m convert`, nothing else is measured here. The weights are those of the
extra `weights`. The table is docs/engineering/measurements.md's.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert import TARGETS, source
from convert import __main__ as command
from convert.verification.precision import PRECISIONS
from convert.verification.verify import VerificationFailed
from data.rng import philox

MODELS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
COLUMNS = (
    "network",
    "format",
    "precision",
    "right",
    "agreement",
    "without ties",
    "log loss",
    "MB",
    "ms an image",
    "verdict",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a Markdown table, a row as soon as it is measured; what `convert` says goes to standard error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precisions", description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--precision", nargs="+", choices=tuple(PRECISIONS), default=tuple(PRECISIONS))
    parser.add_argument("--to", nargs="+", choices=tuple(TARGETS), default=tuple(TARGETS))
    parser.add_argument("--macos", type=int, default=14, help="of the Core ML packages, as for `convert`")
    options = parser.parse_args(argv)
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        halves = _halves(options.photos, Path(folder))
        for model in options.models:
            for precision in options.precision:
                for target in (one for one in PRECISIONS[precision].targets if one in options.to):
                    words = ["--to", target, "--precision", precision, "--macos", str(options.macos)]
                    rows = [_measured(model, words, *pair) for pair in (halves, halves[::-1])]
                    print(f"| {model} | {target} | {precision} | {_cells(rows)} |", flush=True)
    return 0


def _halves(photos: Path, folder: Path) -> tuple[Path, Path]:
    """Two folders of class folders, drawn at random from the photographs."""
    from timm.data import ImageNetInfo

    names = dict(zip(ImageNetInfo().label_names(), source.read(Path(MODELS[0]))[0].card.class_names, strict=True))
    files = sorted(path for path in photos.iterdir() if path.name.partition("_")[0] in names)
    order = philox(0, "benchmark", 0).permutation(len(files))
    for place, k in enumerate(order):
        home = folder / f"half_{2 * place // len(files)}" / names[files[k].name.partition("_")[0]]
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files[k], home / files[k].name)
    return folder / "half_0", folder / "half_1"


def _measured(model: str, words: Sequence[str], calibrate: Path, judged: Path) -> dict[str, Any]:
    """The row of `verify.json` on the CPU or in the evaluator; empty where the precision is refused."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()) as said:
        arguments = [model, *words, "--calibrate", str(calibrate), "--verify", str(judged), "--out", out]
        code = command.main(arguments)
        file = Path(out) / "verify.json"
        rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    print(said.getvalue(), file=sys.stderr)
    kept = [row for row in rows if row["runtime"] in ("onnx CPU", "mil_reference")]
    if not kept and code != VerificationFailed.exit_code:
        raise SystemExit(f"convert {' '.join(arguments)}: exit code {code}")
    return dict(kept[0]) if kept else {}


def _cells(rows: Sequence[dict[str, Any]]) -> str:
    whole = [row for row in rows if "images" in row]
    if len(whole) < len(rows):
        return " | | | | | refused by convert"
    images = np.array([row["images"] for row in whole])

    def mean(key: str) -> float:
        return float(np.average([row[key] for row in whole], weights=images))

    right, before = (round(mean(key) * images.sum()) for key in ("accuracy", "accuracy_checkpoint"))
    speeds = [row["milliseconds"] for row in whole if row["milliseconds"] is not None]
    return " | ".join(
        [
            f"{right} ({before})",
            f"{mean('top1_agreement'):.2%}",
            f"{mean('clear_agreement'):.2%}",
            f"{mean('log_loss'):.4f} ({mean('log_loss_checkpoint'):.4f})",
            " and ".join(dict.fromkeys(f"{row['megabytes']:.1f}" for row in whole)),
            f"{np.mean(speeds):.1f}" if speeds else "",
            "; ".join(fault for row in whole for fault in row["faults"]) or "within the limits",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
