"""The precisions of ImageNet networks on labelled photographs: `python -m benchmarks precisions PHOTOS ROWS`.

PHOTOS is a folder of photographs whose names begin with their WordNet id (`n01484850_great_white_shark.JPEG`), drawn
into two halves: each calibrates once while the other one is judged. Figures and messages are those of
`python -m convert`, with the weights of the extra `weights`. ROWS is a file of JSON lines; what is in it is not
measured again, so that a stopped benchmark can be resumed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import common
from benchmarks.common import Result, comparison, option
from config.errors import ConvertError
from convert import source
from convert.verification.verify import VerificationFailed
from data.rng import philox

MODELS = tuple(f"tf_efficientnet_lite{i}" for i in range(3))
# Of ONNX, or with @ of Core ML for this macOS; those that rarely rank layers come first.
KINDS = ("int8", *(f"{name}@{macos}" for name in ("w8", "palette8", "palette6", "palette4") for macos in (14, 15)))


@comparison(
    "precisions",
    option("photos", type=Path),
    option("rows", type=Path),
    option("--models", nargs="+", default=MODELS),
    option("--kinds", nargs="+", default=KINDS),
)
def precisions(arguments: argparse.Namespace, folder: Path) -> Result:
    """Append a line for each direction, kind and network that has none yet; how many there are then."""
    file = arguments.rows
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["calibrated"], row["kind"], row["model"]) for row in rows}
    halves = _halves(arguments.photos, folder)
    for half, kind, model in itertools.product((0, 1), arguments.kinds, arguments.models):
        if (half, kind, model) in done:
            continue
        precision, _, macos = kind.partition("@")
        words = ["--to", "coreml", "--macos", macos] if macos else ["--to", "onnx"]
        words += ["--precision", precision, "--calibrate", str(halves[half]), "--verify", str(halves[1 - half])]
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "convert", model, *words, "--out", out]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if ended.returncode not in (0, VerificationFailed.exit_code):
                raise ConvertError(f"{' '.join(command)}: {ended.stderr}")
            verified = Path(out) / "verify.json"
            figures = json.loads(verified.read_text(encoding="utf-8"))[0] if verified.exists() else {}
        row = {"calibrated": half, "kind": kind, "model": model, "messages": ended.stdout + ended.stderr, **figures}
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print(json.dumps(row, indent=1), file=sys.stderr, flush=True)
        rows.append(row)
    return common.result({"rows": len(rows)}, 1, "torch", "onnx", "coremltools")


def _halves(photos: Path, folder: Path) -> tuple[Path, Path]:
    """Two folders of class folders, drawn at random from the photographs."""
    from timm.data import ImageNetInfo

    class_names = source.read(Path(MODELS[0]))[0].card.class_names
    names = dict(zip(ImageNetInfo().label_names(), class_names, strict=True))
    files = sorted(path for path in photos.iterdir() if path.name.partition("_")[0] in names)
    for i, k in enumerate(philox(0, "benchmark", 0).permutation(len(files))):
        home = folder / f"half_{2 * i // len(files)}" / names[files[k].name.partition("_")[0]]
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files[k], home / files[k].name)
    return folder / "half_0", folder / "half_1"
