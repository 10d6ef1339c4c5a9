"""How long fitting an ensemble takes, and how much memory, on synthetic out-of-fold logits of a large competition.

    python -m benchmarks.fit --json
    python -m benchmarks.fit --method greedy --metric macro_f1

Writes runs of synthetic logits (7 runs x 5 folds x 33,137 images x 396 classes unless told otherwise), then runs
`python -m infer fit` on them in a process of its own, with the arguments that this command does not know. Its peak
memory counts the mapped files as far as they were in memory; `anonymous_gib` does not. Results:
docs/engineering/measurements.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from benchmarks import common
from data.rng import philox
from models.card import CARD_KEY, Card, Preprocessing

_SHARPNESS = (3.6, 3.5, 3.4, 3.3, 3.0, 2.9, 2.8)


def main() -> int:
    """Print the figures; the exit code is 1 when the fit takes a minute or 4 GiB."""
    parser = common.parser(__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--images", type=int, default=33_137)
    parser.add_argument("--classes", type=int, default=396)
    arguments, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = write(Path(folder), arguments)
        done = common.command("-m", "infer", "fit", *map(str, runs), "--out", f"{folder}/ensemble.yaml", *rest)
    figures: dict[str, Any] = {"seconds": round(done.seconds, 1), "cpu_seconds": round(done.cpu_seconds, 1)}
    figures |= {"peak_gib": done.peak_gib, "anonymous_gib": done.anonymous_gib, "output": done.output.splitlines()}
    common.report(arguments, figures, 1, "numpy")
    return int(done.seconds >= 60 or done.peak_gib >= 4)


def write(folder: Path, sizes: argparse.Namespace) -> list[Path]:
    """Run folders with logits of differing quality whose errors are partly common, as those of real members are."""
    rng = philox(0, "benchmark")
    share = rng.dirichlet(np.full(sizes.classes, 5.0))
    targets = rng.choice(sizes.classes, sizes.images, p=share)
    fold_of = rng.integers(sizes.folds, size=sizes.images)
    ids = np.array([f"train/{i:06}.jpg" for i in range(sizes.images)])
    shared = rng.standard_normal((sizes.images, sizes.classes), dtype=np.float32)
    shared[np.arange(sizes.images), targets] += 2
    card = Card("convnext_atto", tuple(f"class {c:03}" for c in range(sizes.classes)), Preprocessing(32))
    runs = []
    for number in range(sizes.runs):
        logits = rng.standard_normal(shared.shape, dtype=np.float32)
        logits[np.arange(sizes.images), targets] += _SHARPNESS[number % len(_SHARPNESS)]
        logits = 3 * (logits + shared)
        runs.append(folder / f"member_{number}")
        for fold in range(sizes.folds):
            rows, best = fold_of == fold, runs[-1] / f"fold_{fold}" / "best"
            best.mkdir(parents=True)
            weights = {"weight": np.zeros(1, np.float32)}
            safetensors.numpy.save_file(weights, best / "model.safetensors", {CARD_KEY: card.to_json()})
            np.savez(best.with_name("oof.npz"), ids=ids[rows], logits=logits[rows], targets=targets[rows])
    return runs


if __name__ == "__main__":
    sys.exit(main())
