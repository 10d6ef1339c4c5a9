"""One command line for all comparisons, the torch step's figures, and operations counted as the literature does."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks import common
from benchmarks.steps import step_torch
from models import registry

ROOT = Path(__file__).parents[2]


def test_each_ratio_is_reported_in_one_object(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_TORCH_DEVICE", "cpu")
    words = "step --engine torch --models test_resnet --size 32 --batch 4 --updates 3 --repeats 1 --json"
    assert bench.main(words.split()) == 0
    result = json.loads(capsys.readouterr().out)
    figures, row = result["figures"], result["figures"]["models"]["test_resnet"]
    ms = row["ms"]
    assert figures["loop_over_bare"] == row["loop_over_bare"] == pytest.approx(ms["loop"] / ms["bare"], abs=0.01)
    assert row["ratio_timm"] == pytest.approx(ms["timm"] / ms["loop"], abs=0.01)
    assert row["tflops"] > 0
    assert {"machine", "date", "versions", "n", "command"} <= result.keys() and result["n"] == 1


@pytest.mark.parametrize(
    ("name", "giga"), [("resnet18", 1.82), ("convnext_base", 15.4), ("vit_base_patch16_224", 17.6)]
)
def test_operations_are_twice_the_multiply_adds_of_the_papers(name: str, giga: float) -> None:
    """He et al. 2016, Liu et al. 2022 and Touvron et al. 2021 (DeiT) give these multiply-adds at 224 pixels, in 1e9."""
    spec = registry.get(name, image_size=224)
    assert step_torch.forward_operations(spec) == pytest.approx(2e9 * giga, rel=0.02)


def test_figures_become_a_page() -> None:
    models = {"a": {"ratio_mlx_image": 0.4}, "b": {"ratio_mlx_image": None}}
    figures = {"ratio_timm": 2.0, "models": models, "spread": {"files": 1.1}, "output": ["two", "lines"]}
    common_part = {"date": "2026-11-30", "machine": "Linux, 2 cores", "load": 1.0, "versions": {"timm": "1"}, "n": 3}
    infer = {"command": "python x", "figures": figures, **common_part}
    page = bench.page({"infer": infer, "mlx_step": {**infer, "command": "python y"}, "fit": 2})
    assert "| 5 members x 3 views: ours to timm's script for each | 2.0 | >= 3 |  |" in page
    assert "trainer (a) | 0.4 |" in page
    assert "`python y`" in page and "| models.a.ratio_mlx_image | 0.4 |" in page and "| models.b." not in page
    assert "2026-11-30, Linux, 2 cores, load 1.0, timm 1; n = 3" in page and "two\nlines" in page
    assert "## fit\n\nfailed with exit code 2" in page


@pytest.mark.parametrize("name", bench.FILES)
def test_every_comparison_describes_itself(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks"])  # which a comparison replaces
    with pytest.raises(SystemExit) as stopped:
        bench.main([name, "--help"])
    assert stopped.value.code == 0
    assert "usage: " in capsys.readouterr().out


def test_every_comparison_that_the_docs_name_exists() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "Makefile"]
    named = {name for page in pages for name in re.findall(r"-m\sbenchmarks[ .](\w+)", page.read_text())}
    assert len(named) > 5 and named <= bench.FILES.keys()


def test_the_page_is_written_even_where_a_comparison_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    common_part = {"date": "2026-11-30", "machine": "Linux", "load": 1.0, "versions": {}, "n": 1, "command": "python x"}
    found = {"checkpoint": {**common_part, "figures": {"background": {"share": 0.03}}, "missed": "2% of an epoch"}}
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "PAGE", page)
    monkeypatch.setattr(bench, "measured", lambda words, data: found.get(words[0], 3))
    assert bench.main(["--data", str(tmp_path)]) == 1
    assert "| share of an epoch that saving takes | 0.03 | < 0.02 |" in page.read_text()
    assert "Missed: 2% of an epoch" in page.read_text() and "## fit\n\nfailed with exit code 3" in page.read_text()


def test_a_result_can_be_made_on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose psutil has no affinity of processes, and whose kernel has none either."""
    monkeypatch.delattr("psutil.Process.cpu_affinity", raising=False)
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert common.result({"seconds": 1.0}, 3)["n"] == 3


def test_bad_data_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--data", "nowhere.tar"]) == 2
    assert capsys.readouterr().err.startswith("error: nowhere.tar: does not exist; give --data")
    assert bench.main(["lodaer"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: lodaer: no such comparison; did you mean loader? there are loader, step"
    )
