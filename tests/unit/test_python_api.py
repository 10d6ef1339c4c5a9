"""The examples of docs/reference/python_api.md run, from the first to the last, and show every public function."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import convert
import ensemble
import infer
import training
from config.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "python_api.md"
# The page trains real networks; here a tiny one learns two classes of tiny images.
CALL = re.compile(r'"convnext_tiny",\s*data="photos/"')
SMALL = {"weights": "none", "image_size": 64, "batch_size": 4, "engine": "torch"}


def examples() -> list[str]:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [block for block in blocks if "fastapi" not in block]


@pytest.fixture
def photos(tmp_path, monkeypatch) -> None:
    draw = np.random.default_rng(0)
    for name, shade in {"cat": 60, "dog": 190}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.clip(draw.normal(shade, 20, (36, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    Image.fromarray(pixels[:, ::-1]).save(tmp_path / "b.png")
    monkeypatch.chdir(tmp_path)


def test_the_examples_of_the_page_run(photos) -> None:
    names = {"SMALL": SMALL}
    for block in examples():
        code, trained = CALL.subn('"test_convnext", data="photos/", **SMALL', block)
        assert trained == block.count("= train(")
        exec(compile(code, str(PAGE), "exec"), names)
    assert names["same"].folder != names["other"].folder
    assert names["predictions"].ids[0] == "cat/0.png"
    assert names["names"] == ("cat", "dog")
    assert names["probabilities"].shape == (1, 2)
    assert names["scores"].split == "all"
    assert names["half"].is_file()
    assert Path("predictions.csv").is_file()
    assert Path("evaluation/report.html").is_file()
    assert Path("shared/config.json").is_file()
    assert names["vectors"].shape[0] == 2
    assert names["maps"].shape == (1, 64, 64)
    with pytest.raises(ConfigError, match=r"exists"):
        ensemble.fit_ensemble([names["run"]], "ensemble.yaml")
    with pytest.raises(ConfigError, match="metric: found 'f1'; there are log_loss"):
        ensemble.fit_ensemble([names["run"]], "new.yaml", metric="f1")


@pytest.mark.parametrize("package", [training, infer, ensemble, convert], ids=lambda module: module.__name__)
def test_every_public_function_is_in_an_example(package: ModuleType) -> None:
    called = set()
    for node in ast.walk(ast.parse("\n".join(examples()))):
        if isinstance(node, ast.Call):
            called.add(node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", ""))
    functions = {name for name in package.__all__ if not isinstance(getattr(package, name), type)}
    assert functions
    assert functions <= called
    assert importlib.import_module(package.__name__).__all__ == sorted(package.__all__)
