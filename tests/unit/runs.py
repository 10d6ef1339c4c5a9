"""Finished runs made by hand, for the tests of what is read from them: any classes, any names, no training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from config import load
from data import csvfile
from models.card import Card, Preprocessing
from tests.unit.members import checkpoint
from training.loop import metrics

SIZE = 16
SCORES = ("macro_f1", "accuracy", "log_loss")


def finished(
    root: Path, names: tuple[str, ...], images: int, ids: list[str] | None = None, folds: int = 2, skill: float = 3.0
) -> Path:
    """The run `root/runs/made` over a data set `root/data` of `images` pictures; `skill` is the right class's lead."""
    draw = np.random.default_rng(0)
    targets = np.arange(images) % len(names)
    ids = ids or [f"image {i:05d}.png" for i in range(images)]
    _data_set(root / "data", ids, [names[t] for t in targets], draw)
    run = root / "runs" / "made"
    rows = [_fold(run / f"fold_{k}", k, folds, names, ids, targets, skill) for k in range(folds)]
    csvfile.write(
        run / "folds.csv",
        ("ID", "target", "fold"),
        [(name, names[t], i % folds) for i, (name, t) in enumerate(zip(ids, targets, strict=True))],
    )
    words = ["--data.root", str(root / "data"), "--data.image_size", str(SIZE), "--model", "convnext_atto"]
    (run / "config.yaml").write_text(load.to_yaml(load.parse(words, prog="test")))
    (run / "environment.json").write_text(json.dumps([{"engine": "numpy", "command": "train_torch.py --seed 0"}]))
    summary = {"metric": "macro_f1", "folds": rows, "best_fold": 0, "worst_fold": folds - 1}
    for key, measure in (("mean", np.mean), ("std", np.std)):
        summary[key] = {score: float(measure([row[score] for row in rows])) for score in SCORES}
    (run / "fold_results.yaml").write_text(yaml.safe_dump(summary))
    return run


def _fold(folder: Path, k: int, folds: int, names: tuple[str, ...], ids: list[str], targets: np.ndarray, skill: float):
    card = Card("convnext_atto", names, Preprocessing(size=SIZE), {"image_size": SIZE}, trained_with="numpy")
    checkpoint(folder / "best", seed=k, of=card)
    mine = slice(k, None, folds)
    logits = np.random.default_rng(k).normal(size=(len(targets[mine]), len(names))).astype(np.float32)
    logits[np.arange(len(logits)), targets[mine]] += skill
    np.savez(folder / "oof.npz", ids=np.array(ids)[mine], logits=logits, targets=targets[mine])
    history = [(e, 1 / (e + k), 1.2 / (e + k), 0.1 * e, 0.09 * e, 1e-3 / e, 50 + k) for e in range(1, 9)]
    header = ("epoch", "log_loss", "train_loss", "accuracy", "macro_f1", "lr", "images_per_second")
    csvfile.write(folder / "history.csv", header, history)
    row = {"fold": k, **metrics.scores(logits, targets[mine]), "best_epoch": 8, "epochs": 8, "seconds": 12.5}
    (folder / "result.yaml").write_text(yaml.safe_dump(row))
    return row


def _data_set(root: Path, ids: list[str], targets: list[str], draw: np.random.Generator) -> None:
    (root / "train").mkdir(parents=True)
    csvfile.write(root / "train.csv", ("ID", "target"), list(zip(ids, targets, strict=True)))
    for name in ids:
        Image.fromarray(draw.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(root / "train" / name)
