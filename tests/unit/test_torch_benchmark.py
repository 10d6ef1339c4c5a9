"""The torch benchmark runs by itself, tells what it promises, and counts operations as the literature does."""

from __future__ import annotations

import json

import pytest

from benchmarks import __main__ as bench
from benchmarks import torch_cases, torch_step
from models import registry


def test_it_tells_each_ratio_in_one_object(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_TORCH_DEVICE", "cpu")
    words = "--models test_resnet --size 32 --batch 4 --updates 3 --repeats 1 --json"
    assert torch_step.main(words.split()) == 0
    told = json.loads(capsys.readouterr().out)
    row = told["models"]["test_resnet"]
    rates = row["images_per_second"]
    assert told["loop_over_bare"] == row["loop_over_bare"] == pytest.approx(rates["bare"] / rates["loop"], abs=0.01)
    assert row["ratio_timm_synthetic"] == pytest.approx(rates["loop"] / rates["timm"], abs=0.01)
    assert row["tflops"] > 0
    assert {"machine", "cores", "date", "versions", "device"} <= told.keys()


@pytest.mark.parametrize(
    ("name", "giga"), [("resnet18", 1.82), ("convnext_base", 15.4), ("vit_base_patch16_224", 17.6)]
)
def test_operations_are_twice_the_multiply_adds_of_the_papers(name: str, giga: float) -> None:
    """He et al. 2016, Liu et al. 2022 and Touvron et al. 2021 (DeiT) give these multiply-adds at 224 pixels, in 1e9."""
    spec = registry.get(name, image_size=224)
    assert torch_cases.forward_operations(spec) == pytest.approx(2e9 * giga, rel=0.02)


def test_figures_become_a_page() -> None:
    figures = {"ratio_timm": 2.0, "ratios": {"a": 0.4, "b": None}, "spread": {"files": 1.1}}
    page = bench.written("CPU", {"infer": ("python x", figures), "mlx_step": ("python y", figures)})
    assert "| 5 members x 3 views: ours to timm's script for each | 2.0 | >= 3 |  |" in page
    assert "trainer (a) | 0.4 |" in page
    assert "`python y`" in page and "| ratios.a | 0.4 |" in page and "| ratios.b |" not in page


def test_bad_data_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--data", "nowhere.tar"]) == 2
    assert capsys.readouterr().err.startswith("nowhere.tar: does not exist")
