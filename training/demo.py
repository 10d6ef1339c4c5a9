"""`make demo`: the main job on real digits, from image files to a scored submission, by the commands a user types.

Everything is written to `demo_out/`; a second start skips what is finished. Only `score` reads the hidden answers.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score

from config.errors import DataError
from ensemble import ensemble_file
from infer.runner import Runner

OUT = Path("demo_out")
DIGITS, RUNS, ENSEMBLE = OUT / "digits", OUT / "runs", OUT / "ensemble.yaml"
FOLDS = RUNS / "torch" / "folds.csv"
GOAL = 0.985


def main() -> int:
    """Run all steps; the exit code is 0 when the ensemble reaches the goal on the unseen images."""
    began = time.monotonic()
    train()
    onnx, coreml = convert()
    fit(onnx, coreml)
    submission = predict()
    command(
        "-m",
        "training",
        "report",
        *map(str, runs()),
        "--ensemble",
        str(ENSEMBLE),
        "--submission",
        str(submission),
        "--out",
        str(OUT / "report.html"),
    )
    passed = score(submission)
    print(f"\ndemo: {time.monotonic() - began:.0f} s; report: {OUT / 'report.html'}; submission: {submission}")
    return 0 if passed else 1


def runs() -> list[Path]:
    """The three runs: torch, MLX, and MLX going on from a torch fold."""
    return [RUNS / "torch", RUNS / "mlx", RUNS / "torch_to_mlx"]


def train() -> None:
    """Write the images, train folds on both engines, and go on training a torch fold in MLX."""
    command("-m", "data.demo", str(DIGITS))
    common = ["--config", "demo", "--data.root", str(DIGITS), "--out", str(RUNS)]
    command("train_torch.py", *common, "--name", "torch")
    command(
        "train_mlx.py",
        *common,
        "--name",
        "mlx",
        "--folds.file",
        str(FOLDS),
        "--folds.train",
        "[1]",
        "--train.epochs",
        "10",
    )
    moved = ["--weights", str(RUNS / "torch" / "fold_0" / "best"), "--folds.train", "[0]", "--train.epochs", "1"]
    command(
        "train_mlx.py",
        *common,
        "--name",
        "torch_to_mlx",
        "--folds.file",
        str(FOLDS),
        *moved,
        "--optim.lr",
        "2e-4",
        "--schedule.warmup_epochs",
        "0",
    )


def convert() -> tuple[Path, Path]:
    """One fold to ONNX and one to Core ML, each compared with its checkpoint on real images."""
    made = OUT / "converted" / "fold_1_best.onnx", OUT / "converted" / "fold_2_best.mlpackage"
    for number, kind, target in ((1, "onnx", made[0]), (2, "coreml", made[1])):
        if not target.exists():
            source = str(RUNS / "torch" / f"fold_{number}" / "best")
            command(
                "-m", "convert", source, "--to", kind, "--out", str(target.parent), "--verify", str(DIGITS / "test")
            )
    return made


def fit(onnx: Path, coreml: Path) -> None:
    """Ensemble weights and a temperature on the out-of-fold logits; two folds are run by their converted forms."""
    ENSEMBLE.unlink(missing_ok=True)
    folds = RUNS / "torch"
    swaps = [f"{folds / 'fold_1' / 'best'}={onnx}", f"{folds / 'fold_2' / 'best'}={coreml}"]
    command("-m", "infer", "fit", *map(str, runs()), "--out", str(ENSEMBLE), "--tta", "shifts", "--replace", *swaps)


def predict() -> Path:
    """The submission of the mixed ensemble, with its probabilities beside it."""
    command(
        "-m",
        "infer",
        "--ensemble",
        str(ENSEMBLE),
        "--images",
        str(DIGITS / "test.csv"),
        "--sample",
        str(DIGITS / "sample_submission.csv"),
        "--out",
        str(OUT / "submissions"),
    )
    return max((OUT / "submissions").glob("*_ensemble_tta_*[0-9].csv"), key=lambda path: path.stat().st_mtime_ns)


def score(submission: Path) -> bool:
    """Print macro-F1 on the test images, of the ensemble and of each member alone; True when the goal is reached."""
    answers = _column(DIGITS / "hidden_answers.csv")
    said = _column(submission)
    if said.keys() != answers.keys():
        raise DataError(f"{submission}: its IDs are not those of the hidden answers; write it again")
    truth = [answers[key] for key in answers]
    files = [DIGITS / "test" / key for key in answers]
    print("\nmacro-F1 on the unseen test images")
    with warnings.catch_warnings(action="ignore"), Runner(ensemble_file.read(ENSEMBLE)) as runner:
        votes = np.concatenate([answers.votes for answers in runner.run(files)])
        names = np.array(runner.class_names)
        for member, column in zip(runner.members(), names[votes].T, strict=True):
            print(f"  {f1_score(truth, column, average='macro'):.4f}  {member.name}")
    total = f1_score(truth, [said[key] for key in answers], average="macro")
    print(f"  {total:.4f}  the ensemble (goal {GOAL})")
    return bool(total >= GOAL)


def command(*words: str) -> None:
    """Run a Python command line as a user would, showing it; stops the demo with its exit code when it fails."""
    print("\n$ python " + " ".join(words), flush=True)
    done = subprocess.run([sys.executable, *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def _column(path: Path) -> dict[str, str]:
    """ID -> the other column of a two-column CSV."""
    with path.open(newline="") as stream:
        rows = list(csv.reader(stream))[1:]
    return {row[0]: row[1] for row in rows}


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m training.demo", description=__doc__).parse_args()
    sys.exit(main())
