"""What `benchmarks step` says of its measurements, and that its loop is the engine's, step for step."""

from __future__ import annotations

import json
import time

import pytest

import backends
from benchmarks import __main__ as bench
from benchmarks.steps import step, step_mlx
from tests import tiny

SECONDS = {
    "resnet18": {"mlx_image": [0.3, 0.33, 0.9], "bare": [0.2, 0.3, 0.3], "loop": [0.21, 0.3, 0.306]},
    "vit_tiny": {"mlx_image": [0.2, 0.2, 0.2], "bare": [0.1, 0.1, 0.1], "loop": [0.1, 0.1, 0.1]},
}
WORDS = ["step", "--engine", "mlx", "--repeats", "3"]


def test_ratios_are_medians_over_the_turns(monkeypatch, capsys) -> None:
    monkeypatch.setattr(step_mlx, "measured", lambda name, *_: SECONDS[name])
    assert bench.main([*WORDS, "--json", "--models", "resnet18", "vit_tiny"]) == 0
    result = json.loads(capsys.readouterr().out)
    figures = result["figures"]
    assert {name: row["ratio_mlx_image"] for name, row in figures["models"].items()} == {"resnet18": 1.5, "vit_tiny": 2}
    assert {name: row["loop_over_bare"] for name, row in figures["models"].items()} == {"resnet18": 1.02, "vit_tiny": 1}
    assert figures["loop_over_bare"] == 1.01
    assert figures["slower"] == ""
    assert result["command"].startswith("python -m benchmarks step --engine mlx ")
    assert bench.main([*WORDS, "--models", "vit_tiny"]) == 0
    text = capsys.readouterr().out
    for row in ("| ratio_mlx_image | 2.0 |", "| models.vit_tiny.ms.mlx_image | 200.0 |", "| loop_over_bare | 1.0 |"):
        assert row in text


@pytest.mark.parametrize("worse", [{"mlx_image": [0.09] * 3}, {"loop": [0.11] * 3}])
def test_a_slower_step_or_a_dear_loop_is_exit_code_1(worse, monkeypatch, capsys) -> None:
    monkeypatch.setattr(step_mlx, "measured", lambda *_: {**SECONDS["vit_tiny"], **worse})
    assert bench.main([*WORDS, "--models", "vit_tiny"]) == 1
    capsys.readouterr()


def test_the_loop_makes_the_steps_that_it_is_divided_by(monkeypatch) -> None:
    spec, train = tiny.spec("convnext", num_classes=step.CLASSES), step.Repeated(step.pixels(8, 32))
    session = backends.load("numpy").open(spec, None)
    calls, train_step = [], session.train_step

    def counted(*arguments):
        calls.append(arguments)
        return train_step(*arguments)

    monkeypatch.setattr(session, "train_step", counted)
    assert step.loop_seconds(session, spec, train, 3, time.perf_counter) > 0
    assert len(calls) == 3
