"""`--features` and `Runner.features`: files, both engines alike, and what is refused before any image is decoded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet

import infer
from config.errors import ConfigError
from infer.__main__ import main
from models import manifest
from models.card import CARD_KEY, Card
from models.weights import loading as weights_file
from tests.parity import drawn
from tests.parity.shrink import shrunk
from tests.unit import members

SPEC = shrunk("test_efficientnet", 32, {})
SPEC = replace(SPEC, preprocessing=replace(SPEC.preprocessing, crop_pct=1.0))  # images of 32 pixels stay as they are


def saved(path: Path) -> Path:
    """A tiny torch checkpoint of five classes."""
    path.mkdir()
    card = Card(SPEC.name, tuple("abcde"), SPEC.preprocessing, {"image_size": 32}, trained_with="torch")
    weights_file.write(path / "model.safetensors", drawn.weights(SPEC), {CARD_KEY: card.to_json()})
    manifest.write(path)
    return path


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("run") / "best")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], np.ndarray]:
    return members.photographs(tmp_path_factory.mktemp("photographs") / "images")


def timms(pixels: np.ndarray) -> np.ndarray:
    network = drawn.torch_network(SPEC, drawn.weights(SPEC)).eval()
    given = torch.from_numpy(drawn.normalised(SPEC, pixels)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return network.forward_head(network.forward_features(given), pre_logits=True).numpy()


@pytest.mark.parametrize("engine", ["torch", "mlx"])
def test_from_python_they_are_timms_for_a_path_an_array_and_a_list(best, images, engine: str) -> None:
    paths, pixels = images
    wanted = timms(pixels)
    with infer.load(f"{best}@{engine}") as model:
        found = model.features([paths[0], *pixels[1:]])
        one = model.features(str(paths[2]))
        assert model.features([]).size == 0
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_allclose(one, wanted[2:3], atol=1e-4)


def test_both_kinds_of_file_hold_them_by_id(best, images, tmp_path: Path, capsys) -> None:
    paths, pixels = images
    for name in ("f.npz", "f.parquet"):
        words = ["--member", str(best), "--images", str(paths[0].parent), "--features", str(tmp_path / name)]
        assert main(words) == 0
        assert f"features of 7 images, {timms(pixels).shape[1]} each" in capsys.readouterr().out
        assert main(words) == 2
        assert "exists already" in capsys.readouterr().err
    table = parquet.read_table(tmp_path / "f.parquet")
    with np.load(tmp_path / "f.npz") as file:
        assert file["ids"].tolist() == [path.name for path in paths] == table["id"].to_pylist()
        np.testing.assert_allclose(file["features"], timms(pixels), atol=1e-4)
        np.testing.assert_array_equal(file["features"], np.array(table["features"].to_pylist(), np.float32))
        assert file["features"].dtype == np.float32


def test_an_unreadable_image_is_left_out_and_told_or_stops(best, images, tmp_path: Path, capsys) -> None:
    paths, pixels = images
    folder = tmp_path / "images"
    folder.mkdir()
    for path in paths[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / paths[1].name).write_bytes(b"no image")
    words = ["--member", str(best), "--images", str(folder), "--features", str(tmp_path / "f.npz")]
    assert main([*words, "--on_bad_image", "error"]) == 1 and not (tmp_path / "f.npz").exists()
    assert paths[1].name in capsys.readouterr().err
    assert main(words) == 0
    err = capsys.readouterr().err
    assert "left out: 1 of 3 images that cannot be read" in err and paths[1].name in err
    with np.load(tmp_path / "f.npz") as file:
        assert file["ids"].tolist() == [paths[0].name, paths[2].name]
        np.testing.assert_allclose(file["features"], timms(pixels[[0, 2]]), atol=1e-4)
    for path in folder.iterdir():
        path.write_bytes(b"no image")
    assert main([*words[:-1], str(tmp_path / "g.npz")]) == 1
    assert "none of the 3 images can be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--features", "f.csv"], "ends in .npz or .parquet"),
        (["--features", "f.npz", "--tta", "flip"], "features are those of one view"),
        (["--features", "f.npz", "--resume"], "--resume: is for predictions"),
        (["--features", "f.npz", "--on_bad_image", "row"], "leaves an unreadable image out"),
    ],
)
def test_what_does_not_go_with_them_is_one_line(best, images, tmp_path, monkeypatch, capsys, more, said) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--member", str(best), "--images", str(images[0][0].parent), *more]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1


def test_other_runtimes_and_several_members_are_refused(best, images, tmp_path: Path, capsys) -> None:
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(b"not looked at")
    package = tmp_path / "model.mlpackage"
    package.mkdir()
    plain = members.checkpoint(tmp_path / "numpy")
    rest = ["--images", str(images[0][0].parent), "--features", str(tmp_path / "f.npz")]
    for member, said in (
        (onnx, "onnx gives no features; take the checkpoint, on torch or mlx"),
        (package, "gives no features"),
        (plain, "numpy gives no features"),
    ):
        assert main(["--member", str(member), *rest]) == 2
        assert said in capsys.readouterr().err
    assert main(["--member", str(best), str(best), *rest]) == 2
    assert "features are those of one network, and there are 2 members" in capsys.readouterr().err
    with infer.load(plain) as model, pytest.raises(ConfigError, match="numpy gives no features"):
        model.features(images[0])
