"""How long until something happens: `--help` of each command, and the first update of a training.

    python -m benchmarks.startup --json

The training is `train_torch.py` with local weights, drawn here, on photographs in two class folders. It is started
twice, and each start ends where its first update would begin: `first` looks through the images (the audit), which
`second` finds done. Seconds are by the clock, from before the interpreter starts; `help_s` is the least of three.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
COMMANDS = ("train_torch.py", "train_mlx.py", "-m infer", "-m convert", "-m data", "-m models", "-m training")
_FIRST = "--until-the-first-update"
_TURNS = 3


def main() -> int:
    """Print the table or JSON."""
    if sys.argv[1:2] == [_FIRST]:
        return until_the_first_update(float(sys.argv[2]), sys.argv[3:])
    from benchmarks import common

    parser = common.parser(__doc__, photographs=True)
    parser.add_argument("--images", type=int, default=0, help="files; 0 takes each photograph once")
    parser.add_argument("--model", default="convnext_base")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        result: dict[str, Any] = {"help_s": {name: round(of_help(name), 2) for name in COMMANDS}}
        result["update_s"] = starts(arguments, Path(place))
    common.tell(arguments, result, "torch", "timm")
    return 0


def of_help(command: str) -> float:
    """Seconds that `--help` of a command takes."""
    taken = []
    for _ in range(_TURNS):
        begun = time.perf_counter()
        words = [sys.executable, *command.split(), "--help"]
        subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        taken.append(time.perf_counter() - begun)
    return min(taken)


def starts(arguments: argparse.Namespace, place: Path) -> dict[str, float]:
    """Seconds to the first update, of a start that does not know the images and of the next one."""
    from backends.torch import model
    from benchmarks.common import photographs
    from models import registry
    from models.weights import loading

    images = photographs(arguments.data, arguments.images, place / "images" / "even").parent
    (images / "odd").mkdir()
    for file in sorted((images / "even").iterdir())[1::2]:
        file.rename(images / "odd" / file.name)
    drawn = model.canonical_tensors(model.build(registry.get(arguments.model)))
    loading.write(place / "model.safetensors", model.to_arrays(drawn), {})
    words = ["--model", arguments.model, "--weights", str(place / "model.safetensors"), "--out", str(place / "runs")]
    words += ["--data.root", str(images), "--train.batch_size", "8"]
    return {name: start([*words, "--name", name], place / "cache") for name in ("first", "second")}


def start(words: list[str], cache: Path) -> float:
    """Seconds to the first update of a training in a new process."""
    command = [sys.executable, "-m", "benchmarks.startup", _FIRST, str(time.time()), *words]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TANDEM_CACHE": str(cache)}, stdout=subprocess.PIPE, check=True, text=True
    )
    print(done.stdout, file=sys.stderr, end="")
    return round(float(done.stdout.splitlines()[-1]), 1)


def until_the_first_update(begun: float, words: list[str]) -> int:
    """`train_torch.py` up to there: the last line says how long it took since `begun`."""

    def first(*_: Any) -> NoReturn:
        print(time.time() - begun, flush=True)
        os._exit(0)

    from backends.torch.session import Session
    from training import cli

    Session.train_step = first
    return cli.main("torch", words)


if __name__ == "__main__":
    sys.exit(main())
