"""Progressive resizing: which size, batch and rate stand where, refusals, and exact resume across the stages."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from config import load
from config.errors import ConfigError, Interrupted
from config.sections.train import Progressive, Schedule, Train
from models import registry
from tests.unit.test_campaign import NEVER, StopAfter, final, settings
from training.policy import resizing, schedule
from training.policy.resizing import ResizeSchedule, ResizeStage
from training.run import train_run

SMALL_FIRST = ("--progressive.sizes", "[16, 24]", "--progressive.epochs", "[1, 1]", "--data.image_size", "32")


def test_a_smaller_stage_takes_as_many_more_images_as_it_has_fewer_pixels() -> None:
    wish = Progressive(sizes=(128, 176, 208), epochs=(3, 2, 1))
    spec = registry.get("convnext_atto", image_size=224)
    found = resizing.stages(wish, Train(epochs=10), spec, batch=64, images=10_000)
    assert found == (
        ResizeStage(3, 128, 192),
        ResizeStage(2, 176, 96),
        ResizeStage(1, 208, 64),
        ResizeStage(4, 224, 64),
    )
    for stage in found:
        assert stage.batch * stage.size**2 <= 64 * 224**2, "it would not fit where the full size fits"
    kept = resizing.stages(wish.model_copy(update={"raise_batch": False}), Train(epochs=10), spec, 64, 10_000)
    assert {stage.batch for stage in kept} == {64}
    micro = resizing.stages(wish, Train(epochs=10, micro_batch=32), spec, 64, 10_000)
    assert [stage.batch for stage in micro] == [192, 96, 64, 64]
    assert resizing.stages(wish, Train(epochs=10), spec, 64, images=100)[0].batch == 100


def test_schedules_fall_by_epochs_and_updates_are_numbered_without_a_gap() -> None:
    course = ResizeSchedule((ResizeStage(2, 16, 50), ResizeStage(1, 24, 30), ResizeStage(3, 32, 20)), samples=205)
    assert [course.steps(epoch) for epoch in range(6)] == [4, 4, 6, 10, 10, 10]
    numbers = [course.update(epoch, batch) for epoch in range(6) for batch in range(course.steps(epoch))]
    assert numbers == list(range(course.updates))
    wish = Schedule(name="cosine", warmup_epochs=1)
    planned = schedule.of(wish, peak=1.0, epochs=6, steps=course.last_steps)
    for epoch in range(6):
        rate = schedule.learning_rate(planned, course.position(epoch, 0))
        assert rate == schedule.learning_rate(planned, epoch * 10), "each epoch begins where it would without stages"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--progressive.sizes", "[16]"], r"progressive\.epochs: found \[\].*one number for each of 1 sizes"),
        (["--progressive.sizes", "[16]", "--progressive.epochs", "[3]"], r"less than train\.epochs \(3\) together"),
        (["--progressive.sizes", "[8]", "--progressive.epochs", "[1]"], r"progressive\.sizes"),
    ],
)
def test_stages_that_do_not_fit_are_refused_with_the_settings(words: list[str], said: str, digits: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        load.parse(["--data.root", str(digits), "--train.epochs", "3", *words], prog="test")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.image_size", "24"], r"progressive\.sizes: 24 is not below data\.image_size \(24\)"),
        (["--model", "vit_tiny_patch16_224"], r"vit_tiny_patch16_224\S* takes images of one size only \(32\)"),
    ],
)
def test_a_model_or_size_that_does_not_suit_is_refused_before_training(
    words: list[str], said: str, digits: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        train_run.run_all("numpy", settings(digits, tmp_path, *SMALL_FIRST, *words), NEVER)
    assert not list(tmp_path.glob("*/fold_0/step_*"))


def test_a_run_stopped_in_any_stage_ends_as_the_straight_one(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = train_run.run_all("numpy", settings(digits, tmp_path / "a", *SMALL_FIRST), NEVER)
    said = capsys.readouterr().out
    assert "fold_0, epochs 1 to 1: 1 step of 32 images at 16 pixels" in said
    assert "fold_0, epochs 3 to 3: 5 steps of 8 images at 32 pixels" in said
    with (straight / "fold_0" / "history.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 3
    wanted = settings(digits, tmp_path / "b", *SMALL_FIRST)
    for questions in (1, 3, 4):
        with pytest.raises(Interrupted):
            train_run.run_all("numpy", wanted, StopAfter(questions))
    one, other = final(straight), final(train_run.run_all("numpy", wanted, NEVER))
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)
