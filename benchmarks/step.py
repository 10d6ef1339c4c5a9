"""How fast is a training step? Our loop against the bare step, and against another library's loop, in one run.

    python -m benchmarks.step --engine torch                        # small networks on the CPU, synthetic data
    python -m benchmarks.step --engine torch --data ../shared/data/photos.tar
    python -m benchmarks.step --engine mlx
    python -m benchmarks.step --engine mlx --gpu                    # Metal or CUDA: 224 pixels, batches of 64

Arms, in turn, `--repeats` turns of `--updates` updates each after one that warms up, in seconds an update (CPU seconds
where the CPU computes, so that other programs do not count):

- `bare`: the engine's step alone, as fast as it goes; with torch its tensors are on the device already.
- `loop`: `training.loop.trainer` with the same batch from the host for every update; no checkpoints, whose cadence is
  the user's (`benchmarks.checkpoint`).
- `timm`: the loop of timm's train.py with a normalised batch that is on the device (`benchmarks.timm_train`), in a
  process of its own, with memory as its users have it.
- `mlx_image`: mlx-image's own `Trainer.train_epoch`, which updates and measures accuracy; fp32, AdamW as ours.
- `loop_files`, `loop_cached`, `timm_files`, with torch and `--data`: the same from JPEG files and from the cache of
  decoded images, each with random crops, flips and colour jitter on `--workers` cores.

`loop_over_bare` is seconds over seconds (1.00: the loop costs nothing), `ratio_PEER` the peer's seconds over our loop's
(with MLX: over our bare step's), above 1 where we are faster: medians over the turns, and their geometric mean over the
networks. `tflops` are the network's own operations, forward and backward, that the loop does in a second. On a CUDA
device run `benchmarks.gpu`. Results: docs/engineering/speed_torch.md and speed_mlx.md.
"""

from __future__ import annotations

import importlib
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from config import heap
from config.errors import TandemError
from data.cores import cores

Seconds = dict[str, list[float]]  # of an update, by arm and turn
GOAL = 1.03  # of the bare step's time, for the loop
PACKAGES = {"torch": ("torch", "timm"), "mlx": ("mlx", "mlx-image")}
PEERS = {"torch": ("timm", "loop"), "mlx": ("mlx_image", "bare")}  # the arm of another library, and what it is over


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table or JSON; 1 where `slower` names a network."""
    parser = common.parser(__doc__)
    parser.add_argument("--engine", choices=tuple(PACKAGES), default="torch")
    parser.add_argument("--data", type=Path, help="torch: a tar of photographs, or a folder, to train from files too")
    parser.add_argument("--images", type=int, default=0, help="files; 0 takes each photograph once")
    parser.add_argument("--device", default="cpu", choices=("cpu", "mps"), help="torch's")
    parser.add_argument("--gpu", action="store_true", help="MLX: sizes for Metal or CUDA")
    parser.add_argument("--models", nargs="+", help="names, of the engine's table or others")
    parser.add_argument("--size", type=int, help="pixels, in place of the table's")
    parser.add_argument("--batch", type=int, help="images, in place of the table's")
    parser.add_argument("--updates", type=int, help="updates of a turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each arm")
    parser.add_argument("--workers", type=int, default=cores(), help="threads, timm's processes")
    parser.add_argument("--compile", choices=("default", "reduce-overhead", "max-autotune"), help="torch's")
    arguments = parser.parse_args(argv)
    heap.retain_freed_memory()  # as our commands do
    try:
        figures = summary(
            importlib.import_module(f"benchmarks.step_{arguments.engine}").run(arguments), arguments.engine
        )
    except TandemError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    common.report(arguments, figures, arguments.repeats, *PACKAGES[arguments.engine])
    return int(bool(figures["slower"]))


def in_turn(name: str, arms: dict[str, Callable[[], float]], repeats: int, warm: Callable[[], None]) -> Seconds:
    """Seconds of an update of each arm's turns, after one that compiles; `warm` runs before each."""
    seconds: Seconds = {arm: [] for arm in arms}
    for turn in range(repeats + 1):
        for arm, run in arms.items():
            warm()
            taken = run()
            if turn:
                seconds[arm].append(taken)
        print(f"{name}: {'warm' if not turn else f'turn {turn} of {repeats}'}", file=sys.stderr)
    return seconds


def summary(networks: dict[str, dict[str, Any]], engine: str) -> dict[str, Any]:
    """Each network's ratios, the geometric means over the networks, and which are `slower`: in three quarters of at
    least three turns slower than the peer, or with a loop that costs more than 3%."""
    peer, ours = PEERS[engine]
    names = {"loop_over_bare": ("loop", "bare"), f"ratio_{peer}": (peer, ours)}
    names |= {"ratio_timm_files": ("timm_files", "loop_files"), "cached_over_bare": ("loop_cached", "bare")}
    rows, slower = {}, []
    for name, row in networks.items():
        seconds: Seconds = row["seconds"]
        ratios = {
            key: [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
            for key, (over, under) in names.items()
            if over in seconds
        }
        rows[name] = {
            **{key: value for key, value in row.items() if key not in ("seconds", "operations")},
            **{key: round(statistics.median(values), 3) for key, values in ratios.items()},
            "ms": {arm: common.rounded(1000 * statistics.median(each)) for arm, each in seconds.items()},
            "spread": {arm: round(1 - min(each) / max(each), 3) for arm, each in seconds.items()},
        }
        if operations := row.get("operations"):
            rows[name]["tflops"] = common.rounded(operations / statistics.median(seconds["loop"]) / 1e12)
        behind = [ratio < 1 for ratio in ratios[f"ratio_{peer}"]]
        dear = [ratio > GOAL for ratio in ratios["loop_over_bare"]]
        if any(len(turns) >= 3 and sum(turns) >= 0.75 * len(turns) for turns in (behind, dear)):
            slower.append(name)
    shared = [key for key in names if all(key in row for row in rows.values())]
    means = {key: round(statistics.geometric_mean(row[key] for row in rows.values()), 3) for key in shared}
    return {**means, "slower": ", ".join(slower), "models": rows}


if __name__ == "__main__":
    sys.exit(main())
