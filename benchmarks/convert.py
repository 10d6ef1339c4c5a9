"""Times and memory of converting one model of each family, random weights: `python -m benchmarks.convert [MODEL ...]`.

Each conversion is a process of its own, so that its peak memory is its own. Results:
docs/engineering/measurements.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import common

MODELS = (
    "convnext_base",
    "convnextv2_tiny",
    "efficientnet_b4",
    "tf_efficientnetv2_s",
    "mobilenetv3_large_100",
    "resnet50d",
    "regnety_032",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "vit_base_patch16_224",
    "eva02_tiny_patch14_224",
    "maxvit_tiny_tf_224",
)
CLASSES = 100
FIGURES = ("size", "seconds", "cpu_seconds", "peak_gib", "megabytes")


def main(argv: list[str] | None = None) -> int:
    """Print a Markdown table: seconds by the clock and of the CPU, GiB at the peak and MB of the file, each format."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convert", description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--one", choices=("onnx", "coreml"), help="this process converts one model to this format")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    options = parser.parse_args(argv)
    if options.one:
        print(_convert(options.models[0], options.one, options.precision))
        return 0
    columns = ["model", "size", *("s", "CPU s", "GiB", "MB") * 2]
    columns[2], columns[6] = "ONNX s", "Core ML s"
    told = {}
    if not options.json:
        print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    for model in options.models:
        rows = {target: _apart(model, target, options.precision).split() for target in ("onnx", "coreml")}
        told[model] = {target: dict(zip(FIGURES, row, strict=False)) for target, row in rows.items()}
        if not options.json:
            figures = " | ".join(" | ".join(row[1:]) for row in rows.values())
            print(f"| {model} | {rows['onnx'][0]} | {figures} |", flush=True)
    if options.json:
        print(json.dumps(told, indent=1))
    return 0


def _apart(model: str, target: str, precision: str) -> str:
    words = [sys.executable, "-m", "benchmarks.convert", model, "--one", target, "--precision", precision]
    done = subprocess.run(words, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[-1] if done.returncode == 0 else f"? failed {done.stderr.splitlines()[-1]} ?"


def _convert(model: str, target: str, precision: str) -> str:
    start = time.perf_counter()
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
        seconds, size = time.perf_counter() - start, verify.size(out) / 1e6
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = common.peak() / 2**30
    return f"{spec.preprocessing.size} {seconds:.0f} {used.ru_utime + used.ru_stime:.0f} {peak:.1f} {size:.0f}"


if __name__ == "__main__":
    sys.exit(main())
