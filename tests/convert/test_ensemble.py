"""A whole ensemble in one file answers as the runner does; what cannot be one file says why."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from backends.torch import model as torch_model
from config.errors import ConvertError
from convert import __main__ as command
from convert import source, torch_ensemble, torch_views
from infer import load, predictors, views
from models import manifest, registry, weights
from models.card import CARD_KEY, Card

CLASSES = tuple("0123456789")


def write(folder: Path, seed: int, arch: str = "test_convnext", size: int = 32, with_: str = "torch") -> Path:
    """A checkpoint of random weights with a head that makes its answers differ from image to image."""
    spec = registry.get(arch, num_classes=len(CLASSES), image_size=size)
    torch.manual_seed(seed)
    arrays = torch_model.to_arrays(torch_model.canonical_tensors(torch_model.build(spec)))
    arrays["head.fc.weight"] = 4 * np.random.default_rng(seed).normal(size=arrays["head.fc.weight"].shape).astype("f4")
    prep = dataclasses.replace(spec.preprocessing, crop_pct=1.0)
    card = Card(arch, CLASSES, prep, dict(spec.options), with_)
    folder.mkdir(parents=True)
    weights.write(folder / "model.safetensors", arrays, {CARD_KEY: card.to_json()})
    manifest.write(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two folds, one trained on each engine, and a third checkpoint that asks for larger images."""
    root = tmp_path_factory.mktemp("run")
    write(root / "fold_0" / "best", 0)
    write(root / "fold_1" / "best", 1, with_="mlx")
    write(root / "large", 2, size=48)
    (root / "config.yaml").write_text("model: test_convnext\n")
    return root


def ensemble(run: Path, **keys: object) -> Path:
    best = [str(run / f"fold_{k}" / "best") for k in (0, 1)]
    members = [
        {"path": best[0], "weight": 0.5, "temperature": 1.5},
        {"path": best[1], "weight": 0.3},
        {"path": best[0], "weight": 0.2, "temperature": 0.7},
        {"path": best[1], "weight": 0.0},
    ]
    content = {"temperature": 0.8, "views": ["original", "rot90", "rotate+10", "crop_rb"], "members": members, **keys}
    file = run / "mixed.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_the_graph_answers_as_the_runner_does(combine: str, run: Path) -> None:
    file = ensemble(run, combine=combine)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    (one,) = source.read(file)
    graph = torch_ensemble.build(one)
    with torch.no_grad():
        ours = graph(torch.from_numpy(images).permute(0, 3, 1, 2).float()).exp().numpy()
    with load(file) as runner:
        theirs = runner.predict(list(images)).probabilities
    assert np.ptp(theirs, axis=0).max() > 0.1, "all images get one answer, so that nothing is shown"
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_views_are_the_runners_own() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 33, 33, 3), dtype=np.uint8)
    for name in views.VIEWS:
        made = torch_views.apply(name, torch.from_numpy(images).permute(0, 3, 1, 2).float()).permute(0, 2, 3, 1)
        np.testing.assert_array_equal(made.numpy(), views.apply(name, images), err_msg=name)


def test_one_file_of_each_format_verified_on_files(
    run: Path, all_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ensemble(run)
    (tmp_path / "pictures").mkdir()
    for path in sorted((all_digits / "test").iterdir())[:6]:
        shutil.copy(path, tmp_path / "pictures" / path.name)
    words = [
        str(file),
        "--to",
        "onnx",
        "coreml",
        "--out",
        str(tmp_path / "out"),
        "--verify",
        str(tmp_path / "pictures"),
    ]
    assert command.main(words) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert {r["artefact"] for r in rows} == {"mixed.onnx", "mixed.mlpackage"}
    assert all(r["top1_agreement"] == 1 and r["images"] == 6 for r in rows)
    stored = sum((run / f"fold_{k}/best/model.safetensors").stat().st_size for k in (0, 1))
    for row in rows:
        assert row["megabytes"] * 1e6 < 1.25 * stored + 100_000, (
            "the weights of a checkpoint named twice are there twice"
        )
    opened = predictors.open(tmp_path / "out" / "mixed.onnx")
    assert opened.card.class_names == CLASSES
    image = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(np.exp(opened.logits(image)).sum(1), 1, rtol=1e-5)


def test_a_run_is_each_folds_best(run: Path) -> None:
    assert [one.stem for one in source.read(run)] == ["fold_0_best", "fold_1_best"]
    assert [one.path for one in source.read(run / "fold_1")] == [run / "fold_1" / "best"]


@pytest.mark.parametrize("kind", ["sizes", "artefact", "zoo", "clip", "merge"])
def test_what_cannot_be_one_file_says_why(kind: str, run: Path, tmp_path: Path) -> None:
    paths, keys = [str(run / "fold_0" / "best"), str(run / "large")], {}
    said = r"48 px.*one image batch"
    if kind == "clip":
        paths, keys, said = paths[:1], {"clip": 1e-4}, "more than weights and temperatures"
    if kind == "merge":
        paths, keys, said = paths[:1], {"views": ["flip"], "merge": "max"}, "more than weights and temperatures"
    if kind == "artefact":
        (run / "made.onnx").touch()
        paths, said = [str(run / "made.onnx")], "artefact already"
    if kind == "zoo":
        card = Card("mlxim/resnet18", CLASSES, registry.get("mlxim/resnet18").preprocessing, {}, "mlx")
        (tmp_path / "zoo").mkdir()
        arrays = {"x": np.zeros(1, np.float32)}
        weights.write(tmp_path / "zoo" / "model.safetensors", arrays, {CARD_KEY: card.to_json()})
        paths, said = [str(tmp_path / "zoo")], "MLX's alone"
    file = ensemble(run, members=[{"path": path} for path in paths], **keys)
    with pytest.raises(ConvertError, match=said):
        torch_ensemble.build(source.read(file)[0])
