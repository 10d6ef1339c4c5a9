"""The notebook in examples/ runs from its first cell to its last."""

from __future__ import annotations

import ast
import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import demo

NOTEBOOK = Path(__file__).parents[2] / "examples" / "train.ipynb"
TEST_IMAGES = 30


@pytest.fixture
def few_digits(digits, all_digits, tmp_path, monkeypatch) -> None:
    """Have the demo's digits be the few of the tests, with some labelled test images."""

    def write(root: str) -> Path:
        made = Path(root)
        shutil.copytree(digits, made)
        (made / "test").mkdir()
        rows = list(csv.DictReader((all_digits / "hidden_answers.csv").open(newline="")))[:TEST_IMAGES]
        for row in rows:
            shutil.copy(all_digits / "test" / row["ID"], made / "test")
        with (made / "hidden_answers.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return made

    monkeypatch.setattr(demo, "write", write)
    monkeypatch.chdir(tmp_path)


def executed(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """The names that the code cells leave, and the value that each cell shows."""
    names: dict[str, Any] = {}
    shown = []
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, str(path), "exec"), names)
            shown.append(eval(compile(ast.Expression(last.value), str(path), "eval"), names) if last else None)
    return names, shown


def test_the_notebook_runs(few_digits) -> None:
    names, shown = executed(NOTEBOOK)
    run, predictions = names["run"], names["predictions"]
    assert len(predictions) == len(names["scores"].ids) == TEST_IMAGES
    assert run.report() in shown
    np.testing.assert_allclose(shown[-1].probabilities, predictions.probabilities[:1], atol=1e-5)
    assert names["probabilities"].shape == (1, 10)
    assert [path.name for path in names["onnx"]] == ["fold_0_best.onnx"]


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
