"""Time and memory of converting one model of each family, random weights: `python -m benchmarks.convert [MODEL ...]`.

Each conversion is a process of its own, imports included. Results: docs/engineering/measurements.md.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common

MODELS = (
    *("convnext_base", "convnextv2_tiny", "efficientnet_b4", "tf_efficientnetv2_s", "mobilenetv3_large_100"),
    *("resnet50d", "regnety_032", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "vit_base_patch16_224"),
    *("eva02_tiny_patch14_224", "maxvit_tiny_tf_224"),
)
FORMATS = ("onnx", "coreml")
CLASSES = 100


def main() -> int:
    """Print for each model and format: seconds by the clock and of the CPU, GiB at the peak, MB of the files."""
    parser = common.parser(__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--only", choices=FORMATS, help="this process converts the one model to this format")
    arguments = parser.parse_args()
    if arguments.only:
        print(written(arguments.models[0], arguments.only, arguments.precision))
        return 0
    figures: dict[str, Any] = {}
    for model in arguments.models:
        figures[model] = {}
        for target in FORMATS:
            words = ["-m", "benchmarks.convert", model, "--only", target, "--precision", arguments.precision]
            done = common.command(*words)
            row = f"{done.seconds:.0f} s, {done.cpu_seconds:.0f} s of CPU, {done.peak_gib} GiB"
            figures[model][target] = f"{row}, {float(done.output.splitlines()[-1]):.0f} MB"
    common.report(arguments, figures, 1, "torch", "onnx", "coremltools")
    return 0


def written(model: str, target: str, precision: str) -> float:
    """Convert and return the MB of the artefact."""
    import torch

    import convert
    from backends.torch import model as torch_model
    from convert.graph import torch_network
    from convert.verification import verify
    from models import registry
    from models.card import Card

    torch.manual_seed(0)
    spec = registry.get(model, num_classes=CLASSES)
    network = torch_network.Classifier(torch_model.build(spec), spec.preprocessing).eval().requires_grad_(False)
    card = Card(model, tuple(f"class {k}" for k in range(CLASSES)), spec.preprocessing, dict(spec.options), "torch")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"x{convert.TARGETS[target].suffix}"
        convert.load(target).write(network, card, out, precision)
        return verify.size(out) / 1e6


if __name__ == "__main__":
    sys.exit(main())
