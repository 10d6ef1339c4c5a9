"""How many files an addition touches: one of each kind is planted in a copy of the tree and used by its commands."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROOMS = ("config", "models", "ports", "data", "backends", "ensemble", "infer", "training", "convert")
Edits = dict[str, list[tuple[str, str]]]  # by file: a line, and the text that is put before it; "" for a new file

FAMILY: Edits = {
    "models/families.py": [
        (
            '    "convnext": Family(',
            '    "mixer": Family("mlp_mixer", 1e-3, LayerGroups("stem", r"blocks\\.(\\d+)", tail="norm"), "norm",'
            " takes_img_size=True),\n",
        )
    ],
    "ports/mixer.py": [
        (
            "",
            '''"""MLP-Mixer (Tolstikhin et al. 2021) in MLX, as timm's."""

import mlx.core as mx
import mlx.nn as nn

from ports.common.layers import Conv2d, LayerNorm, Linear


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = Linear(width, hidden), Linear(hidden, width)

    def __call__(self, x):
        return self.fc2(nn.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, tokens):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(width, 1e-6), LayerNorm(width, 1e-6)
        self.mlp_tokens, self.mlp_channels = Mlp(tokens, width // 2), Mlp(width, 4 * width)

    def __call__(self, x):
        x = x + self.mlp_tokens(self.norm1(x).swapaxes(1, 2)).swapaxes(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class Stem(nn.Module):
    def __init__(self, chans, width, patch):
        super().__init__()
        self.proj = Conv2d(chans, width, patch, stride=patch)

    def __call__(self, x):
        return self.proj(x).flatten(1, 2)


class Mixer(nn.Module):
    def __init__(self, spec):
        super().__init__()
        width, patch = spec.args["embed_dim"], spec.args["patch_size"]
        self.stem = Stem(spec.in_chans, width, patch)
        tokens = (spec.preprocessing.size // patch) ** 2
        self.blocks = [Block(width, tokens) for _ in range(spec.args["num_blocks"])]
        self.norm, self.head = LayerNorm(width, 1e-6), Linear(width, spec.num_classes)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(mx.mean(self.norm(x), axis=1))


def build(spec):
    return Mixer(spec)
''',
        )
    ],
}
LOSS: Edits = {
    "config/sections/train.py": [
        ('    "focal": {', '    "brier": {"power": 2.0},\n'),
        (
            "    gamma: float | None = _option(",
            '    power: float | None = _option("brier", "power", "of the differences")\n',
        ),
    ],
    "backends/losses.py": [
        (
            "def focal(",
            "def brier(ops: Ops, logits: Any, targets: Any, power: float) -> Any:\n"
            "    return ops.total((ops.softmax(logits) - targets) ** power)\n\n\n",
        ),
        ('    "focal": focal,', '    "brier": brier,\n'),
    ],
}
AUGMENTATION: Edits = {
    "data/augment/ops.py": [
        (
            "def gamma(",
            "def swap_channels(image: Pixels, rng: Any, strength: float, share: float = 1.0) -> Pixels:\n"
            "    return np.ascontiguousarray(image[..., ::-1]) if rng.random() < share * strength else image\n\n\n",
        ),
        (
            '    "gamma": (',
            '    "swap_channels": ("blue is red", {"share": ("how often", 0, 1)}, 0.5, 1.0),\n',
        ),
        ('    "gamma": gamma,', '    "swap_channels": swap_channels,\n'),
    ]
}
SCHEDULE: Edits = {
    "training/policy/schedule.py": [
        (
            "def _linear(",
            "def inverse_root(schedule: Schedule, step: float, _length: int) -> float:\n"
            "    return max(schedule.peak / math.sqrt(1 + step), schedule.floor)\n\n\n",
        ),
        ('    "linear": _linear,', '    "inverse_root": inverse_root,\n'),
    ]
}
OPTIMIZER: Edits = {
    "config/sections/train.py": [
        ('    "sgd": {"momentum"', '    "plain": {},\n'),
        ('    "sgd": 100.0,', '    "plain": 100.0,\n'),
    ],
    "backends/torch/optim.py": [
        ('    "sgd": (', '    "plain": (),\n'),
        (
            '    elif kind == "sgd":',
            '    elif kind == "plain":\n        optimizer = torch.optim.SGD(rows, fused=True)\n',
        ),
    ],
    "backends/mlx/optim.py": [
        ('    "sgd": (', '    "plain": (),\n'),
        (
            '    if spec.name in ("sgd", "lion"):',
            '    if spec.name == "plain":\n'
            "        rule = rules.sgd(OptimSpec(momentum=0.0, nesterov=False), taken)\n"
            "        return lambda _: rule\n",
        ),
    ],
}
RUNTIME: Edits = {
    "infer/runtimes/brightness.py": [
        (
            "",
            '''"""Tells classes apart by their brightness alone."""

import json

import numpy as np

from models.card import Card

SUFFIX = ".brightness"
OPTIONS = ()


class Brightness:
    runtime = "brightness"

    def __init__(self, card, levels):
        self.card, self.levels = card, levels

    def logits(self, images):
        return -np.abs(images.mean(axis=(1, 2, 3))[:, None] - self.levels).astype(np.float32)

    def close(self):
        pass


def open(path):
    stored = json.loads(path.read_text())
    return Brightness(Card.from_json(stored["card"], str(path)), np.array(stored["levels"]))
''',
        )
    ]
}
ADDITIONS = {
    "family": (FAMILY, 2),
    "loss": (LOSS, 2),
    "augmentation": (AUGMENTATION, 1),
    "schedule": (SCHEDULE, 1),
    "optimizer": (OPTIMIZER, 3),
    "runtime": (RUNTIME, 1),
}


@pytest.mark.parametrize("kind", ADDITIONS)
def test_an_addition_touches_as_many_files_as_contributing_promises(kind: str) -> None:
    edits, count = ADDITIONS[kind]
    assert len(edits) == count
    assert f"| {kind} | {count} |" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the rooms with all additions, and the table that is recorded of the new family."""
    copy = tmp_path_factory.mktemp("tree")
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for program in ("train_torch.py", "train_mlx.py", "pyproject.toml"):
        shutil.copy(ROOT / program, copy / program)
    for edits, _ in ADDITIONS.values():
        for name, insertions in edits.items():
            for line, text in insertions:
                plant(copy / name, line, text)
    python(copy, "-m", "models.record_timm", "mixer")
    return copy


def plant(file: Path, line: str, text: str) -> None:
    if not line:
        assert not file.exists()
        file.write_text(text, encoding="utf-8")
        return
    before = file.read_text(encoding="utf-8")
    assert before.count(f"\n{line}") == 1, f"{file.name}: {line}"
    file.write_text(before.replace(f"\n{line}", f"\n{text}{line}"), encoding="utf-8")


def python(tree: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=tree, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("engine", ["torch", "mlx"])
def test_what_was_added_is_trained_with(engine: str, tree: Path, digits: Path, tmp_path: Path) -> None:
    words = ["--data.root", str(digits), "--out", str(tmp_path), "--name", "run", "--weights", "none"]
    words += ["--model", "mixer_s32_224", "--data.image_size", "32", "--data.audit", "false", "--data.workers", "1"]
    words += ["--train.epochs", "1", "--train.batch_size", "40", "--train.compile", "off", "--seed", "1"]
    words += ["--loss.name", "brier", "--loss.power", "2", "--optim.name", "plain", "--optim.lr", "0.1"]
    words += ["--schedule.name", "inverse_root", "--schedule.warmup_epochs", "0"]
    words += ["--augment.level", "none", "--augment.ops", "{swap_channels: {prob: 1, share: 0.5}}"]
    python(tree, f"train_{engine}.py", *words)
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["loss"]["name"] == "brier" and settings["optim"]["name"] == "plain"
    with (tmp_path / "run" / "fold_0" / "history.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert 0 < float(row["train_loss"]) < 2, "the Brier score is at most 2"


def test_wrong_names_list_what_was_added(tree: Path, digits: Path) -> None:
    words = ["train_torch.py", "--data.root", str(digits), "--loss.name", "nothing", "--optim.name", "nothing"]
    words += ["--schedule.name", "nothing", "--augment.ops", "{nothing: true}"]
    done = subprocess.run([sys.executable, *words], cwd=tree, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    for known in ("brier", "plain", "inverse_root", "swap_channels"):
        assert known in done.stderr, done.stderr


def test_an_added_runtime_predicts(tree: Path, tmp_path: Path) -> None:
    import cv2

    from models.card import Card, Preprocessing

    card = Card("mixer_s32_224", ("dark", "bright"), Preprocessing(32))
    (tmp_path / "x.brightness").write_text(json.dumps({"card": card.to_json(), "levels": [0, 255]}))
    (tmp_path / "images").mkdir()
    for name, level in (("a", 10), ("b", 240)):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.full((40, 40, 3), level, np.uint8))
    out = tmp_path / "out.csv"
    python(
        tree, "-m", "infer", "--member", f"{tmp_path}/x.brightness", "--images", f"{tmp_path}/images", "--out", f"{out}"
    )
    with out.open(newline="") as file:
        assert [row["target"] for row in csv.DictReader(file)] == ["dark", "bright"]
