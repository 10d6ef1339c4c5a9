"""How long until something happens: `--help` of each command, and the first update of a training.

    python -m benchmarks.startup --json

The training is `train_torch.py` with local weights, drawn here, on photographs in two class folders. It is started
twice, and each start ends where its first update would begin: `first` audits the images, `second` finds that done.
Seconds are by the clock, from before the interpreter starts; `help_s` is the least of three.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

COMMANDS = ("train_torch.py", "train_mlx.py", "-m infer", "-m convert", "-m data", "-m models", "-m training")
_FIRST = "--until-the-first-update"
_TURNS = 3


def main() -> int:
    """Print the table or JSON."""
    if sys.argv[1:2] == [_FIRST]:
        return until_the_first_update(float(sys.argv[2]), sys.argv[3:])
    from benchmarks import common

    parser = common.parser(__doc__, photographs=True)
    parser.add_argument("--model", default="convnext_base")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        helps = {
            name: round(min(common.command(*name.split(), "--help").seconds for _ in range(_TURNS)), 2)
            for name in COMMANDS
        }
        figures: dict[str, Any] = {"help_s": helps, "update_s": starts(arguments, Path(folder))}
    common.report(arguments, figures, 1, "torch", "timm")
    return 0


def starts(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds to the first update, of a start that does not know the images and of the next one."""
    from backends.torch import model
    from benchmarks import common
    from models import registry
    from models.weights import loading

    images = common.photographs(arguments.data, 0, folder / "images" / "even").parent
    (images / "odd").mkdir()
    for file in sorted((images / "even").iterdir())[1::2]:
        file.rename(images / "odd" / file.name)
    drawn = model.canonical_tensors(model.build(registry.get(arguments.model)))
    loading.write(folder / "model.safetensors", model.to_arrays(drawn), {})
    words = ["--model", arguments.model, "--weights", str(folder / "model.safetensors"), "--out", str(folder / "runs")]
    words += ["--data.root", str(images), "--train.batch_size", "8", "--name"]
    seconds = {}
    for name in ("first", "second"):
        start = ["-m", "benchmarks.startup", _FIRST, str(time.time())]
        done = common.command(*start, *words, name, TANDEM_CACHE=str(folder / "cache"))
        seconds[name] = round(float(done.output.splitlines()[-1]), 1)
    return seconds


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
