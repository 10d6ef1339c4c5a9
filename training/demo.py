"""`make demo`: the main job on real digits, from image files to a scored submission, by the commands a user types.

One line a stage; the commands and what they print are in `demo_out/log.txt`. A second start skips what is finished.
Only `score` reads the hidden answers.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from config.errors import DataError
from config.program import entry
from config.program.parser import Parser

# What takes time is imported where it is used, so that Ctrl-C at the start is no traceback.
OUT = Path("demo_out")
DIGITS, RUNS, ENSEMBLE, LOG = OUT / "digits", OUT / "runs", OUT / "ensemble.yaml", OUT / "log.txt"
TORCH, MLX = RUNS / "torch", RUNS / "mlx"
ONNX, COREML = OUT / "converted" / "fold_1_best.onnx", OUT / "converted" / "fold_2_best.mlpackage"
SUBMISSION, REPORT, PICTURE = OUT / "submission.csv", OUT / "report.html", OUT / "predictions.png"
GOAL = 0.985
_SHOWN = (4, 10)  # rows and columns of digits on the picture
_TAIL = 15  # lines of the log that are shown where a command fails


def main() -> int:
    """Run all stages; the exit code is 0 when the ensemble reaches the goal on the unseen images."""
    began = time.monotonic()
    OUT.mkdir(exist_ok=True)
    print(f"Tandem's demo: read handwritten digits. Commands and details: {LOG}\n", flush=True)
    stages: dict[str, Callable[[], str]] = {
        "images": images,
        "train": train,
        "convert": convert,
        "ensemble": fit,
        "predict": predict,
        "report": report,
    }
    for number, (name, stage) in enumerate(stages.items(), 1):
        start = time.monotonic()
        print(f"{number}/{len(stages)} {name:<9}", end="", flush=True)
        print(f"{stage()}  ({time.monotonic() - start:.0f} s)", flush=True)
    passed, total, count = score()
    picture()
    print(f"\nmacro-F1 {total:.4f} on {count} unseen images (goal {GOAL}); {time.monotonic() - began:.0f} s in all")
    print(f"open {PICTURE}, then {REPORT}\n\nnext, with a folder of your own images (one folder a class):")
    print("  python -m data look --root DIR\n  python train_torch.py --data.root DIR --dry_run")
    return 0 if passed else 1


def _run(words: list[str]) -> int:
    Parser(prog="python -m training.demo", description=__doc__).parse_args(words)
    return main()


def images() -> str:
    """Write the images, as a competition would give them."""
    command(["-m", "data.demo", str(DIGITS)])
    counts = [len(list((DIGITS / split).iterdir())) for split in ("train", "test")]
    return f"{counts[0]} to train on, {counts[1]} to predict"


def train() -> str:
    """Three folds in torch and one of the same folds in MLX, at the same time."""
    from models import registry
    from models.weights import hub, source

    real = source.timm_installed() and hub.packaged(registry.get("tf_efficientnet_lite0"))
    recipe, epochs = ("demo_pretrained", 3) if real else ("demo", 10)
    common = ["--config", recipe, "--data.root", str(DIGITS), "--out", str(RUNS)]
    command(
        ["train_torch.py", *common, "--name", "torch"],
        ["train_mlx.py", *common, "--name", "mlx", "--folds.train", "[1]", "--train.epochs", str(epochs)],
    )
    import yaml

    scores = [yaml.safe_load((run / "fold_results.yaml").read_text())["mean"]["macro_f1"] for run in (TORCH, MLX)]
    start = "EfficientNet-Lite0 from ImageNet weights" if real else "a small ConvNeXt from scratch"
    return f"{start}: macro-F1 {scores[0]:.3f} in torch (3 folds), {scores[1]:.3f} in MLX (1 fold)"


def convert() -> str:
    """One fold to ONNX and one to Core ML, each compared with its checkpoint on real images."""
    verified = ["--out", str(ONNX.parent), "--verify", str(DIGITS / "test")]
    wanted = [
        ["-m", "convert", str(TORCH / f"fold_{number}" / "best"), "--to", kind, *verified]
        for number, kind, artefact in ((1, "onnx", ONNX), (2, "coreml", COREML))
        if not artefact.exists()
    ]
    command(*wanted)
    return "fold 1 to ONNX, fold 2 to Core ML; both predict as their checkpoints"


def fit() -> str:
    """Ensemble weights and a temperature on the out-of-fold logits; two folds are run by their converted forms."""
    for file in (ENSEMBLE, SUBMISSION):
        file.unlink(missing_ok=True)
    swaps = [f"{TORCH / f'fold_{k}' / 'best'}={artefact}" for k, artefact in ((1, ONNX), (2, COREML))]
    command(["-m", "infer", "fit", str(TORCH), str(MLX), "--out", str(ENSEMBLE), "--replace", *swaps])
    from ensemble import ensemble_file

    return f"{len(ensemble_file.read(ENSEMBLE).members)} members, weighted and calibrated on out-of-fold logits"


def predict() -> str:
    """The submission of the mixed ensemble, with its probabilities beside it."""
    sample = ["--sample", str(DIGITS / "sample_submission.csv"), "--out", str(SUBMISSION)]
    command(["-m", "infer", "--ensemble", str(ENSEMBLE), "--images", str(DIGITS / "test.csv"), *sample])
    where = "Core ML" if sys.platform == "darwin" else "the Core ML evaluator"
    return f"{len(column(SUBMISSION))} images by torch, MLX, ONNX Runtime and {where} together"


def report() -> str:
    """The page about both runs and their ensemble."""
    files = ["--ensemble", str(ENSEMBLE), "--submission", str(SUBMISSION), "--out", str(REPORT)]
    command(["-m", "training", "report", str(TORCH), str(MLX), *files])
    return "curves, scores per class, the ensemble, confident mistakes, what the networks looked at"


def score() -> tuple[bool, float, int]:
    """Whether the goal is reached on the test images, the ensemble's macro-F1, and how many images there are."""
    answers, predicted = column(DIGITS / "hidden_answers.csv"), column(SUBMISSION)
    if predicted.keys() != answers.keys():
        raise DataError(f"{SUBMISSION}: its IDs are not those of the hidden answers; write it again")
    from sklearn.metrics import f1_score

    total = f1_score([*answers.values()], [predicted[key] for key in answers], average="macro")
    return bool(total >= GOAL), float(total), len(answers)


def picture() -> None:
    """`predictions.png`: all mistakes and the least certain images, each with what was predicted."""
    answers, predicted = column(DIGITS / "hidden_answers.csv"), column(SUBMISSION)
    with SUBMISSION.with_name(f"{SUBMISSION.stem}_probabilities.csv").open(newline="") as stream:
        certain = {row[0]: max(map(float, row[1:])) for row in list(csv.reader(stream))[1:]}
    hardest = sorted(answers, key=lambda key: (predicted[key] == answers[key], certain[key]))
    import cv2
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_SHOWN[1], _SHOWN[0] * 1.25), layout="constrained")
    figure.suptitle("Predicted digits: mistakes first, then the least certain")
    for axis, key in zip(figure.subplots(*_SHOWN).flat, hardest, strict=False):
        wrong = predicted[key] != answers[key]
        axis.imshow(cv2.imread(str(DIGITS / "test" / key), cv2.IMREAD_GRAYSCALE), cmap="gray_r")
        title = f"{predicted[key]}, is {answers[key]}" if wrong else f"{predicted[key]}  {certain[key]:.0%}"
        axis.set_title(title, fontsize=9, color="crimson" if wrong else "black")
        axis.set_axis_off()
    figure.savefig(PICTURE, dpi=100)


def command(*lines: Sequence[str]) -> None:
    """Run Python command lines as a user would, at the same time; stops the demo with the exit code of one that fails.

    What they print goes to the log.
    """
    from data.cores import cores

    # Two commands at a time; and more threads would only slow the small products of the Core ML evaluator.
    threads = str(max(cores() // 2, 1))
    running = []
    for number, words in enumerate(lines):
        log = OUT / f"log_{number}.txt"
        with log.open("w") as stream:
            stream.write(f"\n$ python {' '.join(words)}\n")
            stream.flush()
            environment = {**os.environ, "OMP_NUM_THREADS": threads}
            words = [sys.executable, *words]
            running.append((log, subprocess.Popen(words, stdout=stream, stderr=subprocess.STDOUT, env=environment)))
    failed = 0
    try:
        codes = [process.wait() for _, process in running]
    finally:  # Ctrl-C goes to them, too: they save, and the next start finds nobody at work
        for _, process in running:
            process.wait()
    for (log, _), code in zip(running, codes, strict=True):
        text = log.read_text()
        with LOG.open("a") as stream:
            stream.write(text)
        log.unlink()
        if code:
            print(f"failed; the end of {LOG}:", *text.splitlines()[-_TAIL:], sep="\n", file=sys.stderr)
        failed = failed or code
    if failed:
        sys.exit(failed)


def column(path: Path) -> dict[str, str]:
    """ID -> the other column of a two-column CSV."""
    with path.open(newline="") as stream:
        rows = list(csv.reader(stream))[1:]
    return {row[0]: row[1] for row in rows}


if __name__ == "__main__":
    sys.exit(entry.run(_run, None, "python -m training.demo"))
