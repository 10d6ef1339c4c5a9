"""Checkpoints, runs and images for the tests of inference, made with the numpy engine: no framework is needed."""

import numpy as np
from PIL import Image

import backends
from backends.contract import SessionConfig
from models import manifest, registry
from models.card import CARD_KEY, Card, Preprocessing
from models.weights import loading

CLASSES = ("ant", "bee", "cat")


def card(classes=CLASSES, **preprocessing):
    prep = Preprocessing(**{"size": 32, **preprocessing})
    return Card("convnext_atto", tuple(classes), prep, {"image_size": prep.size}, trained_with="numpy")


def checkpoint(path, seed=0, of=None, sharpness=40.0):
    """A checkpoint folder of a linear model; returns its path."""
    of = of or card()
    session = backends.load("numpy").open(registry.of_card(of, "test"), None, SessionConfig(seed=seed))
    arrays = {name: value * np.float32(sharpness) for name, value in session.state().weights.items()}
    path.mkdir(parents=True)
    loading.write(path / "model.safetensors", arrays, {CARD_KEY: of.to_json()})
    manifest.write(path)
    return path


def photographs(folder, count=7, size=32, seed=0):
    """PNG files that need no resizing at `size`; returns their paths and their pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    folder.mkdir(parents=True)
    paths = [folder / f"{number:03}.png" for number in range(count)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths, pixels


def run(path, answers, targets, ids, of=None):
    """A finished run whose folds `answers[k]` holds logits for the rows `k::len(answers)`."""
    for fold, logits in enumerate(answers):
        rows = slice(fold, None, len(answers))
        checkpoint(path / f"fold_{fold}" / "best", seed=fold, of=of or card())
        shown = {"ids": np.array(ids)[rows], "targets": targets[rows], "logits": logits[rows].astype(np.float32)}
        np.savez(path / f"fold_{fold}" / "oof.npz", **shown)
    return path
