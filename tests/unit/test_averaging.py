"""Averages of weights: SWA as torch's, the greedy soup, and both at the end of a fold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from config.errors import Interrupted
from models.weights import loading
from tests.unit.test_campaign import NEVER, StopAfter, final, settings
from training.__main__ import main
from training.loop import averaging, checkpoint
from training.loop.averaging import Judged, Swa
from training.run import results, train_run

AVERAGED = ("--swa.epochs", "2", "--soup", "true", "--folds.train", "[0]")


def test_swa_is_torchs_average_of_models() -> None:
    model, swa = torch.nn.Linear(3, 2), Swa(start=0)
    reference = torch.optim.swa_utils.AveragedModel(model)
    for _ in range(5):
        torch.nn.init.normal_(model.weight)
        torch.nn.init.normal_(model.bias)
        reference.update_parameters(model)
        swa.observe({n: p.detach().numpy().copy() for n, p in model.named_parameters()})
    for name, parameter in reference.module.named_parameters():
        np.testing.assert_allclose(swa.mean[name], parameter.detach().numpy(), rtol=1e-6, atol=1e-7)
    again = Swa(start=0)
    again.restore(swa.arrays())
    assert (again.count, again.mean.keys()) == (5, swa.mean.keys())


def checkpoints(folder: Path, *values: float) -> list[Path]:
    """Checkpoints of one number each."""
    paths = []
    for i, value in enumerate(values):
        paths.append(folder / f"step_{i}")
        paths[-1].mkdir()
        loading.write(paths[-1] / "model.safetensors", {"w": np.float32([value])}, {})
    return paths


def by_distance(to: float) -> averaging.Judge:
    """Scores that fall with the distance of the number from `to`."""

    def judge(given: loading.Mapping[str, np.ndarray], averaged: bool) -> Judged:
        value = given["w"]
        return Judged(dict(given), value[None], {"accuracy": 1 - abs(float(value[0]) - to)})

    return judge


def test_the_soup_keeps_what_does_not_harm(tmp_path: Path) -> None:
    paths = checkpoints(tmp_path, 0.4, 0.9, 0.6, 0.6)  # the last answers as the third does
    judged, members = averaging.soup(paths, by_distance(0.5), "accuracy")
    assert [p.name for p in members] == ["step_0", "step_2"]
    np.testing.assert_allclose(judged.weights["w"], [0.5])


def test_a_soup_of_one_is_the_best(tmp_path: Path) -> None:
    paths = checkpoints(tmp_path, 0.2, 0.5, 0.9)
    judged, members = averaging.soup(paths, by_distance(0.5), "accuracy")
    assert [p.name for p in members] == ["step_1"]
    np.testing.assert_array_equal(judged.weights["w"], np.float32([0.5]))


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # log loss, in which an average nearly always differs from an epoch
    more = (*AVERAGED, "--stopping.metric", "log_loss")
    return train_run.run_all("numpy", settings(digits, tmp_path_factory.mktemp("runs"), *more), NEVER)


def test_the_best_is_the_best_of_epochs_and_averages(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fold = finished / "fold_0"
    row = yaml.safe_load((fold / "result.yaml").read_text())
    epochs = [r["log_loss"] for r in checkpoint.read_state(checkpoint.steps(fold)[-1])["loop"]["history"]]
    assert row["log_loss"] <= min(epochs)
    said = checkpoint.read_state(fold / "best")
    assert row["weights"] == said.get("averaged", "epoch")
    assert row["log_loss"] == pytest.approx(said["scores"]["log_loss"], abs=1e-6)
    arrays = checkpoint.load_arrays(checkpoint.steps(fold)[-1])
    assert arrays["swa_count"].tolist() == [2]


@pytest.mark.parametrize("questions", [9, 13, 14])
def test_a_stopped_run_goes_on_bit_for_bit(questions: int, finished: Path, digits: Path, tmp_path: Path) -> None:
    wanted = settings(digits, tmp_path, *AVERAGED, "--stopping.metric", "log_loss")
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", wanted, StopAfter(questions))
    one, other = final(finished), final(train_run.run_all("numpy", wanted, NEVER))
    assert one.keys() == other.keys()
    assert any("swa." in name for name in one)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_the_soup_command_writes_a_checkpoint_that_says_its_score(finished: Path, capsys) -> None:
    assert main(["soup", str(finished / "fold_0")]) == 0
    out = capsys.readouterr().out
    made = finished / "fold_0" / "soup"
    assert not checkpoint.damage(made)
    said = checkpoint.read_state(made)
    assert f"log_loss {said['scores']['log_loss']:.4f}" in out
    best = yaml.safe_load((finished / "fold_0" / "result.yaml").read_text())
    assert said["scores"]["log_loss"] <= best["log_loss"] + 1e-6
    assert results.card(finished).class_names == tuple("0123456789")


def test_what_is_no_fold_is_refused(tmp_path: Path, capsys) -> None:
    assert main(["soup", str(tmp_path)]) == 1
    assert "RUN/fold_0" in capsys.readouterr().err
