"""How long fitting an ensemble takes, and how much memory, on synthetic out-of-fold answers of a large competition.

    python -m benchmarks.fit --json

Writes runs of synthetic logits (7 runs x 5 folds x 33,137 images x 396 classes unless told otherwise), then runs
`python -m infer fit` on them in a process of its own, with the arguments that this command does not know, and reports
its wall time, its processor time and its peak resident memory. That memory counts the mapped files as far as they were
in memory; `peak_anonymous_gib` does not. Results: docs/engineering/measurements.md.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
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
    with tempfile.TemporaryDirectory() as place:
        runs = write(Path(place), arguments)
        found = measure(runs, Path(place) / "ensemble.yaml", rest)
    common.tell(arguments, {"fit": rest, **found}, "numpy")
    return int(found["seconds"] >= 60 or found["peak_gib"] >= 4)


def write(place: Path, wish: argparse.Namespace) -> list[Path]:
    """Run folders with logits of differing quality whose errors are partly common, as those of real members are."""
    rng = philox(0, "benchmark")
    share = rng.dirichlet(np.full(wish.classes, 5.0))
    targets = rng.choice(wish.classes, wish.images, p=share)
    fold_of = rng.integers(wish.folds, size=wish.images)
    ids = np.array([f"train/{i:06}.jpg" for i in range(wish.images)])
    common = rng.standard_normal((wish.images, wish.classes), dtype=np.float32)
    common[np.arange(wish.images), targets] += 2
    names = tuple(f"class {c:03}" for c in range(wish.classes))
    card = Card("convnext_atto", names, Preprocessing(32), trained_with="numpy")
    runs = []
    for number in range(wish.runs):
        logits = rng.standard_normal(common.shape, dtype=np.float32)
        logits[np.arange(wish.images), targets] += _SHARPNESS[number % len(_SHARPNESS)]
        logits = 3 * (logits + common)
        runs.append(place / f"member_{number}")
        for fold in range(wish.folds):
            _fold(runs[-1] / f"fold_{fold}", card, ids, logits, targets, fold_of == fold)
    return runs


def _fold(folder: Path, card: Card, ids: Any, logits: Any, targets: Any, mine: Any) -> None:
    (folder / "best").mkdir(parents=True)
    empty = {"weight": np.zeros(1, np.float32)}
    safetensors.numpy.save_file(empty, folder / "best" / "model.safetensors", {CARD_KEY: card.to_json()})
    np.savez(folder / "oof.npz", ids=ids[mine], logits=logits[mine], targets=targets[mine])


def measure(runs: Sequence[Path], out: Path, rest: Sequence[str]) -> dict[str, Any]:
    """Seconds, peak memory and the output of `infer fit` on the runs."""
    command = [sys.executable, "-m", "infer", "fit", *map(str, runs), "--out", str(out), *rest]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peaks = [0]
        watcher = threading.Thread(target=_watch, args=(process, peaks))
        watcher.start()
        output, _ = process.communicate()
        watcher.join()
    seconds = time.perf_counter() - began
    if process.returncode:
        sys.exit(process.returncode)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gib": round(common.peak(resource.RUSAGE_CHILDREN) / 2**30, 2),
        "peak_anonymous_gib": round(peaks[0] / 2**30, 2),
        "output": output.splitlines(),
    }


def _watch(process: subprocess.Popen[str], peaks: list[int]) -> None:
    """The largest resident memory less what is shared with files, sampled while the process lives."""
    try:
        seen = psutil.Process(process.pid)
        while process.poll() is None:
            memory = seen.memory_info()
            peaks[0] = max(peaks[0], memory.rss - getattr(memory, "shared", 0))
            time.sleep(0.1)
    except psutil.NoSuchProcess:
        return


if __name__ == "__main__":
    sys.exit(main())
