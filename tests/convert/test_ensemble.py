"""A whole ensemble in one file answers as the runner does; what cannot be one file says why."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy import ndimage

from backends.torch import model as torch_model
from config.errors import ConvertError
from convert import __main__ as command
from convert import source
from convert.graph import torch_ensemble, torch_resize, torch_views
from data.augment.transforms import EvalTransform
from ensemble import fitted_params, views
from ensemble.calibration import maps
from ensemble.fitted_params import FittedParams
from ensemble.weighting.stack import Stack
from infer import load, runtimes
from infer.runtimes import images
from models import manifest, registry
from models.card import CARD_KEY, Card, Interpolation, Preprocessing
from models.weights import loading

CLASSES = tuple("0123456789")


def write(
    folder: Path, seed: int, arch: str = "test_convnext", size: int = 32, with_: str = "torch", **prepared: Any
) -> Path:
    """A checkpoint of random weights with a head that makes its answers differ from image to image."""
    spec = registry.get(arch, num_classes=len(CLASSES), image_size=size)
    torch.manual_seed(seed)
    arrays = torch_model.to_arrays(torch_model.canonical_tensors(torch_model.build(spec)))
    arrays["head.fc.weight"] = 4 * np.random.default_rng(seed).normal(size=arrays["head.fc.weight"].shape).astype("f4")
    prep = dataclasses.replace(spec.preprocessing, **{"crop_pct": 1.0, **prepared})
    card = Card(arch, CLASSES, prep, dict(spec.options), with_)
    folder.mkdir(parents=True)
    loading.write(folder / "model.safetensors", arrays, {CARD_KEY: card.to_json()})
    manifest.write(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two folds, one trained on each engine, and two checkpoints that ask for larger images."""
    root = tmp_path_factory.mktemp("run")
    write(root / "fold_0" / "best", 0)
    write(root / "fold_1" / "best", 1, with_="mlx")
    write(root / "large", 2, size=48)
    write(root / "cropping", 3, size=48, crop_pct=0.75)
    (root / "config.yaml").write_text("model: test_convnext\n")
    return root


@pytest.fixture
def pictures(all_digits: Path, tmp_path: Path) -> Path:
    """Six files."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted((all_digits / "test").iterdir())[:6]:
        shutil.copy(path, folder / path.name)
    return folder


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


CASES: dict[str, dict[str, Any]] = {
    "probabilities": {},
    "logits": {"combine": "logits"},
    "as fitted with views": {"tempered": "mean"},
    "other merges": {"merge": "geometric", "tempered": "mean"},
    "maximum": {"merge": "max", "combine": "logits"},
    "clipped": {"clip": 0.02},
    "vector": {"layers": "layers.safetensors", "clip": 1e-4},
    "stack": {"layers": "layers.safetensors", "tempered": "mean"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_graph_answers_as_the_runner_does(case: str, run: Path) -> None:
    (run / "layers.safetensors").unlink(missing_ok=True)
    rng, count = np.random.default_rng(1), len(CLASSES)
    if case == "vector":
        found = FittedParams(map=maps.Vector(rng.uniform(0.5, 1.5, count), rng.normal(size=count)))
        fitted_params.write(run / "layers.safetensors", found)
    if case == "stack":  # of three members that belong to no run
        coef = rng.normal(size=(count, 3 * count)) / 3
        fitted_params.write(run / "layers.safetensors", FittedParams(Stack(coef, rng.normal(size=count))))
    keys: dict[str, Any] = {}
    if case == "stack":
        keys["members"] = [{"path": str(run / f"fold_{k}" / "best"), "temperature": t} for k, t in ((0, 1.5), (1, 1))]
        keys["members"].append({"path": str(run / "fold_0" / "best"), "temperature": 0.7})
    file = ensemble(run, **CASES[case], **keys)
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
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ensemble(run)
    words = [
        str(file),
        "--to",
        "onnx",
        "coreml",
        "--out",
        str(tmp_path / "out"),
        "--verify",
        str(pictures),
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
    opened = runtimes.open(tmp_path / "out" / "mixed.onnx")
    assert opened.card.class_names == CLASSES
    some = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(np.exp(opened.logits(some)).sum(1), 1, rtol=1e-5)


def several(run: Path, **keys: object) -> Path:
    """An ensemble whose members want images of 32, 48 and 48 pixels, the last with a border cut off."""
    paths = [run / "fold_0" / "best", run / "large", run / "cropping"]
    members = [{"path": str(path), "weight": weight} for path, weight in zip(paths, (0.2, 0.5, 0.3), strict=True)]
    return ensemble(run, members=members, **keys)


@pytest.mark.parametrize("target", ["onnx", "coreml"])
def test_members_of_several_sizes_are_one_file_with_an_input_for_each(
    target: str, run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = several(run, tempered="mean", clip=1e-3)
    words = [str(file), "--to", target, "--out", str(tmp_path), "--verify", str(pictures)]
    assert command.main(words) == 0, capsys.readouterr().err
    (made,) = (path for path in tmp_path.iterdir() if path.stem == "mixed")
    opened = runtimes.open(made, "onnx" if target == "onnx" else "mil_reference")
    assert [prep.size for prep in opened.card.inputs] == [32, 48, 48]
    assert images.names(opened.card) == ("images_32", "images_48", "images_48_2")
    with pytest.raises(ValueError, match=r"\[N, 32, 32, 3\] and \[N, 48, 48, 3\] and .* got uint8 \[1, 32, 32, 3\]"):
        opened.logits(np.zeros((1, 32, 32, 3), np.uint8))
    paths = sorted(pictures.iterdir())
    with load(file) as whole, load(f"{made}@{opened.runtime}") as one:
        np.testing.assert_allclose(one.predict(paths).probabilities, whole.predict(paths).probabilities, atol=1e-5)


def test_one_image_is_resized_inside_and_judged_by_its_answers(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = several(run, views=["flip"])
    words = [str(file), "--to", "onnx", "--single_input", "--out", str(tmp_path), "--verify", str(pictures)]
    code, said = command.main(words), capsys.readouterr()
    assert "its members' pixels (32, 48, 48) are resized from the one image of 64, not from the file" in said.out
    (row,) = json.loads((tmp_path / "verify.json").read_text())
    assert (code, row["faults"]) in ((0, []), (4, row["faults"])) and said.err.count("\n") <= 1
    assert row["artefact"] == "mixed_one.onnx" and row["torch_error"] < 1e-3 < row["max_logit_difference"]
    opened = runtimes.open(tmp_path / "mixed_one.onnx")
    assert [(prep.size, prep.crop_pct) for prep in opened.card.inputs] == [(64, 1.0)]  # 48 / 0.75: sharp for the last
    paths = sorted(pictures.iterdir())
    with load(file) as whole, load(tmp_path / "mixed_one.onnx") as one:
        np.testing.assert_allclose(one.predict(paths).probabilities, whole.predict(paths).probabilities, atol=0.1)


@pytest.mark.parametrize(("wanted", "crop_pct"), [(224, 1.0), (200, 0.875), (100, 1.0), (300, 0.95)])
def test_forms_of_one_image_are_near_those_of_the_file(wanted: int, crop_pct: float) -> None:
    """Of a smooth square, whose means of areas hardly depend on the way."""
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3)).astype(float)
    picture = (40 * (ndimage.gaussian_filter(noise, (20, 20, 0)) - 127.5) + 127.5).clip(0, 255).astype(np.uint8)
    whole, form = Preprocessing(320), Preprocessing(wanted, crop_pct=crop_pct)
    given = torch.from_numpy(EvalTransform(whole)(picture)[None]).permute(0, 3, 1, 2).float()
    (made,) = torch_resize.Resized(whole, [form])(given)
    difference = np.abs(made[0].permute(1, 2, 0).numpy() - EvalTransform(form)(picture))
    assert difference.mean() < 1.0 < np.abs(np.diff(made.numpy())).mean() / 3


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("wanted", "crop_pct"), [(70, 1.0), (33, 1.0), (60, 0.75)])
def test_forms_are_resized_by_pillows_filters(interpolation: Interpolation, wanted: int, crop_pct: float) -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, (96, 96)).astype(np.float32)
    whole = Preprocessing(96, interpolation=interpolation, resampling="pillow")
    form = dataclasses.replace(whole, size=wanted, crop_pct=crop_pct)
    (made,) = torch_resize.Resized(whole, [form])(torch.from_numpy(pixels).expand(1, 3, 96, 96))
    border = 96 * (1 - crop_pct) / 2
    want = Image.fromarray(pixels).resize(
        (wanted, wanted),
        getattr(Image.Resampling, interpolation.upper()),
        box=(border, border, 96 - border, 96 - border),
    )
    np.testing.assert_allclose(made[0, 0].numpy(), np.array(want), atol=1e-3)


def test_one_image_cannot_serve_crops_and_letterboxes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "boxed", 3, size=48, fit="letterbox")
    file = ensemble(run, members=[{"path": str(run / "fold_0" / "best")}, {"path": str(tmp_path / "boxed")}])
    assert command.main([str(file), "--to", "onnx", "--single_input", "--out", str(tmp_path / "out")]) == 1
    assert "crop, letterbox" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_run_is_each_folds_best(run: Path) -> None:
    assert [one.stem for one in source.read(run)] == ["fold_0_best", "fold_1_best"]
    assert [one.path for one in source.read(run / "fold_1")] == [run / "fold_1" / "best"]


@pytest.mark.parametrize("kind", ["artefact", "zoo", "ranks", "isotonic"])
def test_what_cannot_be_one_file_says_why(kind: str, run: Path, tmp_path: Path) -> None:
    paths, keys = [str(run / "fold_0" / "best")], {"combine": "ranks"}
    said = "mixes ranks"
    if kind == "isotonic":
        curves = maps.Isotonic(np.zeros(10), np.ones(10), np.arange(11), 1e-3)
        fitted_params.write(run / "curves.safetensors", FittedParams(map=curves))
        keys, said = {"layers": "curves.safetensors"}, "isotonic"
    if kind == "artefact":
        (run / "made.onnx").touch()
        paths, keys, said = [str(run / "made.onnx")], {}, "artefact already"
    if kind == "zoo":
        card = Card("mlxim/resnet18", CLASSES, registry.get("mlxim/resnet18").preprocessing, {}, "mlx")
        (tmp_path / "zoo").mkdir()
        arrays = {"x": np.zeros(1, np.float32)}
        loading.write(tmp_path / "zoo" / "model.safetensors", arrays, {CARD_KEY: card.to_json()})
        paths, keys, said = [str(tmp_path / "zoo")], {}, "MLX's alone"
    file = ensemble(run, members=[{"path": path} for path in paths], **keys)
    with pytest.raises(ConvertError, match=said):
        torch_ensemble.build(source.read(file)[0])
