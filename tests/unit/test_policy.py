"""Schedules, groups, stopping and mixing against the public libraries that define them."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler

from config.sections.data import Mix
from training.policy import groups, mix, schedule
from training.policy.plateau import Plateau
from training.policy.stopping import Stopping, overfitting


def test_cosine_with_warmup_is_torchs() -> None:
    total, warmup, peak, floor = 50, 7, 3e-3, 3e-5
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=peak)
    reference = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total - warmup, eta_min=floor),
        ],
        milestones=[warmup],
    )
    ours = schedule.Schedule("cosine", peak, total, warmup, floor)
    for step in range(total):
        assert schedule.learning_rate(ours, step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        reference.step()


def torch_rates(scheduler: type, steps: int, peak: float, **options: float) -> list[float]:
    """The rates of a torch scheduler, one a step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    reference, rates = scheduler(optimizer, **options), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    return rates


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (
            schedule.Schedule("cosine_restarts", 1e-3, 100, floor=1e-6, period=10, growth=2),
            "CosineAnnealingWarmRestarts",
            {"T_0": 10, "T_mult": 2, "eta_min": 1e-6},
        ),
        (schedule.Schedule("one_cycle", 1e-3, 100), "OneCycleLR", {"max_lr": 1e-3, "total_steps": 100}),
        (
            schedule.Schedule("linear", 1e-3, 100, floor=1e-5),
            "LinearLR",
            {"start_factor": 1.0, "end_factor": 0.01, "total_iters": 100},
        ),
        (schedule.Schedule("step", 1e-3, 100, every=7, gamma=0.5), "StepLR", {"step_size": 7, "gamma": 0.5}),
        (schedule.Schedule("constant", 1e-3, 100), "ConstantLR", {"factor": 1.0}),
    ],
    ids=lambda value: value.name if isinstance(value, schedule.Schedule) else "",
)
def test_schedules_are_torchs(ours: schedule.Schedule, theirs: str, options: dict) -> None:
    if theirs == "OneCycleLR":
        options = {**options, "cycle_momentum": False}
    reference = torch_rates(getattr(torch.optim.lr_scheduler, theirs), 99, ours.peak, **options)
    assert [schedule.learning_rate(ours, step) for step in range(99)] == pytest.approx(reference, rel=1e-9)


def test_wsd_is_torchs_constant_then_linear() -> None:
    ours = schedule.Schedule("wsd", 1e-3, 100, floor=1e-5, decay_share=0.25)
    rates = [schedule.learning_rate(ours, step) for step in range(100)]
    assert rates[:75] == [1e-3] * 75
    falling = torch_rates(torch.optim.lr_scheduler.LinearLR, 25, 1e-3, start_factor=1, end_factor=0.01, total_iters=25)
    assert rates[75:] == pytest.approx(falling, rel=1e-9)


def test_cosine_without_warmup_is_timms() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    reference = CosineLRScheduler(optimizer, t_initial=60, lr_min=1e-5, t_in_epochs=False)
    ours = schedule.Schedule("cosine", 1e-3, 60, floor=1e-5)
    for step in range(60):
        reference.step_update(step)
        assert schedule.learning_rate(ours, step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


@pytest.mark.parametrize(("metric", "mode"), [("log_loss", "min"), ("macro_f1", "max")])
def test_plateau_is_torchs(metric: str, mode: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=mode, factor=0.5, patience=2, min_lr=0.05)
    ours = Plateau(metric, factor=0.5, patience=2, floor=0.05)
    for score in np.random.default_rng(0).choice([0.3, 0.5, 0.50001, 0.7], 60).tolist():
        reference.step(score)
        ours.update(score)
        assert ours.scale == pytest.approx(optimizer.param_groups[0]["lr"])
    assert ours.scale == 0.05


def test_overfitting_is_said_only_when_both_losses_part() -> None:
    def course(train: list[float], valid: list[float]) -> list[dict[str, float]]:
        return [{"train_loss": t, "log_loss": v} for t, v in zip(train, valid, strict=True)]

    assert overfitting(course([1.0, 0.9, 0.8, 0.7], [0.5, 0.6, 0.7, 0.8]))
    assert not overfitting(course([1.0, 0.9, 0.8, 0.7], [0.5, 0.6, 0.55, 0.8]))
    assert not overfitting(course([1.0, 1.1, 1.2, 1.3], [0.5, 0.6, 0.7, 0.8]))
    assert not overfitting(course([1.0, 0.9], [0.5, 0.6]))


def test_ema_decay_warms_up_to_its_value() -> None:
    values = [schedule.ema_decay(0.99, step) for step in range(2000)]
    assert values == sorted(values)
    assert values[0] < 0.2
    assert values[-1] == 0.99


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18"])
def test_no_decay_set_is_timms(name: str) -> None:
    model = timm.create_model(name)
    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    # timm lists Swin's tables by a keyword, the others by full name.
    reference = param_groups_weight_decay(model, 0.05, no_weight_decay_list=skip)[0]["params"]
    undecayed = {id(p) for p in reference}
    for parameter_name, parameter in model.named_parameters():
        ours = groups.undecayed(parameter_name, parameter.detach().numpy())
        if "relative_position_bias_table" in parameter_name:
            assert ours
        else:
            assert ours == (id(parameter) in undecayed), parameter_name


def test_stopping_keeps_tiny_gains_but_does_not_wait_for_them() -> None:
    stopping = Stopping("macro_f1", patience=2, min_delta=0.01)
    assert stopping.update(0.5, 0)
    assert stopping.update(0.505, 1)
    assert not stopping.stop
    assert stopping.update(0.508, 2)
    assert stopping.stop
    assert (stopping.best, stopping.best_epoch) == (0.508, 2)


def test_stopping_follows_a_loss_downwards_and_never_takes_nan() -> None:
    stopping = Stopping("log_loss", patience=3)
    assert not stopping.update(float("nan"), 0)
    assert stopping.update(1.0, 1)
    assert stopping.update(0.5, 2)
    assert not stopping.update(0.6, 3)
    assert stopping.best_epoch == 2


def test_mix_plans_repeat_and_differ_between_steps() -> None:
    settings = Mix(mixup=0.8)
    one, again, other = (mix.plan(settings, 8, 32, 0, step, 5) for step in (3, 3, 4))
    assert one is not None
    assert again is not None
    assert other is not None
    np.testing.assert_array_equal(one.own, again.own)
    np.testing.assert_array_equal(one.permutation, again.permutation)
    assert not np.array_equal(one.own, other.own)


def test_cutmix_labels_follow_the_true_area() -> None:
    settings = Mix(cutmix=1.0)
    seen = set()
    for step in range(50):
        plan = mix.plan(settings, 4, 32, 0, step, 5)
        assert plan is not None
        top, bottom, left, right = plan.box[0]
        area = sum(1 for _ in range(top, bottom)) * sum(1 for _ in range(left, right))
        assert plan.own[0] == pytest.approx(1 - area / 32**2, abs=1e-6)
        assert (plan.blend == 1).all()
        seen.add(area)
    assert len(seen) > 10


def test_mixing_stops_for_the_last_epochs_but_keeps_its_shape() -> None:
    settings = Mix(mixup=0.8, off_epochs=2)
    off = mix.plan(settings, 4, 32, 0, 7, epochs_left=2)
    assert off is not None
    np.testing.assert_array_equal(off.own, np.ones(4, np.float32))
    np.testing.assert_array_equal(off.permutation, np.arange(4))
    assert mix.plan(Mix(), 4, 32, 0, 7, 2) is None
