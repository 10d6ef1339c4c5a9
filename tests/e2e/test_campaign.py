"""A campaign as users start it: several processes at once, signals, kills, and the recipe of seven models on torch."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import yaml

from config import load
from config.errors import Interrupted
from infer.io import validation
from models import registry
from tests.e2e.commands import start, wait_for
from tests.e2e.test_recipes import SMALL, few, members  # noqa: F401 - few is a fixture
from tests.e2e.workers import stands_still, works
from tests.processes import fresh
from tests.unit.test_stages import undrawn  # noqa: F401 - a fixture
from training import cli
from training.campaign import pipeline
from training.campaign.start import begin

# Processes of their own, made from one that has imported everything already.
FRESH = fresh("backends.mlx", "training.campaign.pipeline", "tests.numpy_engine", "tests.e2e.test_campaign")
TWO = """
weights: none
folds: {strategy: stratified, n_splits: 3}
data: {image_size: 16, workers: 1, audit: false}
train: {batch_size: 8, compile: "off"}
optim: {lr: 0.01}
members:
  - {name: first, model: convnext_atto}
  - {name: second, model: resnet18}
"""


def words(root: Path, tmp_path: Path, epochs: int) -> list[str]:
    (tmp_path / "two.yaml").write_text(TWO)
    given = ["--config", str(tmp_path / "two.yaml"), "--data.root", str(root), "--out", str(tmp_path / "runs")]
    return [*given, "--name", "shared", "--mode", "train", "--train.epochs", str(epochs)]


def until(what: Callable[[], bool], process: BaseProcess) -> None:
    """Until `what` is so; fails when the process ends before."""
    while not what():
        assert process.is_alive(), f"it ended with {process.exitcode}"
        time.sleep(0.05)


def claims(folder: Path) -> dict[str, list[str]]:
    """Who held each fold, one name a claim that is written."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("members/*/fold_*/.claim_????")):
        if text := path.read_text():
            found.setdefault(f"{path.parts[-3]}/{path.parts[-2]}", []).append(json.loads(text)["name"])
    return found


def test_three_processes_share_the_folds_and_a_killed_ones_is_taken_over(digits: Path, tmp_path: Path) -> None:
    """The first stands still in its first fold and is killed. Others go on with that; no other fold is begun twice."""
    folder = tmp_path / "runs" / "shared"
    given = words(digits, tmp_path, 10)
    victim = FRESH.Process(target=stands_still, args=(given,))
    victim.start()
    until(lambda: any(folder.glob("members/first/fold_0/step_*")), victim)
    others = [FRESH.Process(target=works, args=(given,)) for _ in range(2)]
    for process in others:
        process.start()
    until(lambda: len(claims(folder)) == 6, others[0])
    assert len(claims(folder)["first/fold_0"]) == 1
    victim.kill()
    victim.join()
    for process in others:
        process.join(200)
        assert process.exitcode == 0
    held = claims(folder)
    assert len(held["first/fold_0"]) == 2
    assert held["first/fold_0"][0].startswith(f"process {victim.pid} on ")
    assert all(len(names) == 1 for fold, names in held.items() if fold != "first/fold_0")
    for name in ("first", "second"):
        summary = yaml.safe_load((folder / "members" / name / "fold_results.yaml").read_text())
        assert [row["fold"] for row in summary["folds"]] == [0, 1, 2]
        assert all(row["epochs"] == 10 for row in summary["folds"])


def test_ctrl_c_says_how_to_go_on_and_that_command_does(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "shared"
    process = start("numpy", words(digits, tmp_path, 5000))
    wait_for(lambda: (folder / "members" / "first" / "fold_0" / "history.csv").exists(), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"Go on with: python train_numpy.py --mode train --resume {folder}" in out
    assert "Traceback" not in err
    command, left = load.parse_command(["--mode", "train", "--resume", str(folder)], "test"), 5

    def stop() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    with pytest.raises(Interrupted):
        pipeline.work(begin("numpy", command.members, stop), command.request)
    assert [len(names) for names in claims(folder).values()] == [2], "the same fold goes on"


@pytest.fixture
def documents(few: Path, all_digits: Path, tmp_path: Path) -> Path:  # noqa: F811
    """The few digits with four test images and a sample submission that has a column for each class."""
    root = tmp_path / "documents"
    shutil.copytree(few, root)
    (root / "test").mkdir()
    images = sorted((all_digits / "test").iterdir())[:4]
    for image in images:
        shutil.copy(image, root / "test")
    rows = [f"{image.name},0.2,0.2,0.2,0.2,0.2" for image in images]
    (root / "sample_submission.csv").write_text("\n".join(["ID,5,4,3,2,1", *rows]) + "\n")
    return root


@pytest.mark.usefixtures("undrawn")
def test_the_recipe_of_seven_models_makes_a_submission(documents: Path, tmp_path: Path) -> None:
    """Each member on the smallest network of its family, one epoch of one fold."""
    small = []
    for name, member in members("seven_model_ensemble").items():
        model, size = SMALL[registry.get(member.settings.model).family]
        own = {"data": {"image_size": size}, "loss": {"name": member.settings.loss.name}}
        small.append({"name": name, "model": model, "weight": member.weight, **own})
    small[-1]["global_pool"] = None
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({"recipe": "seven_model_ensemble", "weights": "none", "members": small}))
    given = ["--config", str(file), "--data.root", str(documents), "--out", str(tmp_path / "runs"), "--mode", "full"]
    given += ["--data.workers", "1", "--train.compile", "off", "--train.epochs", "1", "--train.batch_size", "4"]
    given += ["--folds.n_splits", "3", "--folds.train", "[0]", "--data.audit", "false"]
    assert cli.main("torch", given) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    made = yaml.safe_load((folder / "ensemble.yaml").read_text())
    assert made["views"] == ["original", "hflip", "vflip", "hvflip", "rot90"]
    assert {path.parent.parent.name for path in folder.glob("members/*/fold_0/result.yaml")} == {
        member["name"] for member in small
    }
    (sent,) = folder.glob("submissions/*[0-9].csv")
    assert validation.faults(sent, documents / "sample_submission.csv") == []
    weights = {member.name: member.weight for member in load.read_members(folder / "campaign.yaml")}
    assert list(weights.values()) == [20, 20, 15, 15, 10, 10, 10]
