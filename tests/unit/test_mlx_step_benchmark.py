"""What `benchmarks.mlx_step` says of its measurements, and that its loop is the engine's, step for step."""

from __future__ import annotations

import json

import numpy as np
import pytest

import backends
from benchmarks import mlx_step
from tests import tiny

SECONDS = {
    "resnet18": {"mlx_image": [0.3, 0.33, 0.9], "step": [0.2, 0.3, 0.3], "loop": [0.21, 0.3, 0.306]},
    "vit_tiny": {"mlx_image": [0.2, 0.2, 0.2], "step": [0.1, 0.1, 0.1], "loop": [0.1, 0.1, 0.1]},
}


def test_ratios_and_loops_are_medians_over_the_rounds(monkeypatch, capsys) -> None:
    monkeypatch.setattr(mlx_step, "measure", lambda name, *_: SECONDS[name])
    assert mlx_step.main(["--json", "--model", "resnet18", "vit_tiny"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ratios"] == {"resnet18": 1.5, "vit_tiny": 2.0}
    assert told["loops"] == {"resnet18": 0.02, "vit_tiny": 0.0}
    assert told["loop"] == 0.01
    assert told["slower"] == []
    assert told["command"].startswith("python -m benchmarks.mlx_step")
    assert mlx_step.main(["--model", "vit_tiny"]) == 0
    assert "| vit_tiny | 200.0 | 100.0 | 2.00 | 100.0 | +0.0% |" in capsys.readouterr().out


@pytest.mark.parametrize("worse", [{"mlx_image": [0.09] * 3}, {"loop": [0.11] * 3}])
def test_a_slower_step_or_a_dear_loop_is_exit_code_1(worse, monkeypatch, capsys) -> None:
    monkeypatch.setattr(mlx_step, "measure", lambda *_: {**SECONDS["vit_tiny"], **worse})
    assert mlx_step.main(["--model", "vit_tiny"]) == 1
    capsys.readouterr()


def test_the_loop_makes_the_steps_that_it_is_divided_by(monkeypatch) -> None:
    spec, images = tiny.spec("convnext", num_classes=mlx_step.CLASSES), mlx_step._images(8, 32)
    session = backends.load("numpy").open(spec, None)
    calls, step, told = [], session.train_step, []

    def counted(*given):
        calls.append(given)
        return step(*given)

    monkeypatch.setattr(session, "train_step", counted)

    def after(seconds: float) -> None:
        told.append((len(calls), seconds))

    mlx_step._loop(session, spec, images, np.arange(8), 3, 2, after)
    assert [count for count, _ in told] == [3, 6]
    assert all(seconds > 0 for _, seconds in told)
