"""`infer evaluate` on every runtime: a checkpoint on both engines, as ONNX, as Core ML, and all of them mixed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import convert.__main__ as command
from infer.__main__ import main
from tests.unit import members
from tests.unit.test_features import saved


@pytest.mark.filterwarnings("ignore:.*Core ML does not run here")
def test_all_runtimes_score_alike_alone_and_together(tmp_path: Path) -> None:
    best = saved(tmp_path / "best")
    paths, _ = members.photographs(tmp_path / "images", 20)
    for number, path in enumerate(paths):
        target = tmp_path / "data" / "abcde"[number % 5] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    assert command.main([str(best), "--to", "onnx", "coreml", "--out", str(tmp_path / "made")]) == 0
    onnx, coreml = next((tmp_path / "made").glob("*.onnx")), next((tmp_path / "made").glob("*.mlpackage"))
    ways = [f"{best}@torch", f"{best}@mlx", str(onnx), f"{coreml}@mil_reference"]
    found = []
    for number, way in enumerate([[way] for way in ways] + [ways]):
        out = tmp_path / f"out_{number}"
        words = ["evaluate", "--member", *way, "--data.root", str(tmp_path / "data"), "--tta", "flip"]
        assert main([*words, "--out", str(out)]) == 0
        with np.load(out / "predictions.npz") as file:
            found.append((json.loads((out / "metrics.json").read_text()), file["probabilities"]))
    first, wanted = found[0]
    for metrics, probabilities in found:
        np.testing.assert_allclose(probabilities, wanted, atol=1e-4)
        assert metrics["accuracy"] == first["accuracy"]
        assert metrics["log_loss"] == pytest.approx(first["log_loss"], abs=1e-4)
    assert wanted.std() > 0.05 and [one["accuracy"] for one in found[-1][0]["each_member"]] == [first["accuracy"]] * 4
