"""Pretrained weights on both engines, by the path that a training run takes, with no network; and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

import ports
from backends.torch import model as torch_model
from backends.torch import session as torch_session
from config import load
from config.errors import WeightsError
from data import csvfile
from data.augment.transforms import EvalTransform
from models import registry
from models.weights import loading
from ports.common import layers
from tests.unit.test_weights import hub_cache, state_of
from training.run import results, train_run

ENGINES = ("torch", "mlx")
SIZE = 32


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv(torch_session.DEVICE_VARIABLE, "cpu")
    return tmp_path


def train(engine: str, model: str, root: Path, out: Path, source: str, *more: str) -> Path:
    """One epoch at a rate that changes nothing; the run's folder."""
    words = ["--data.root", str(root), "--out", str(out), "--model", model, "--weights", source]
    words += ["--data.image_size", str(SIZE), "--train.epochs", "1", "--train.batch_size", "32", "--data.workers", "1"]
    words += [
        "--optim.lr",
        "1e-12",
        "--schedule.warmup_epochs",
        "0",
        "--train.compile",
        "off",
        "--augment.level",
        "none",
        *more,
    ]
    return train_run.run_all(engine, load.parse(words, prog="test"), lambda: False)


def test_a_run_on_either_engine_starts_from_the_cached_file(offline: Path, digits: Path) -> None:
    """Another image size and another number of classes: the position table is resampled, the classifier drawn anew."""
    spec = registry.get("test_vit", image_size=SIZE, num_classes=10)
    state = state_of("test_vit")
    hub_cache(offline, spec, state)
    found = loading.resolve(spec, "pretrained")
    assert found is not None
    want, _ = loading.fit(found.weights, spec)
    assert want["pos_embed"].shape != tuple(state["pos_embed"].shape)
    logits = []
    for engine in ENGINES:
        folder = train(engine, "test_vit", digits, offline / engine, "pretrained", "--optim.head_init", "random")
        got, _ = loading.read(folder / "fold_0" / "best" / "model.safetensors")
        assert got.keys() == want.keys()
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-6, err_msg=f"{engine} {name}")
        logits.append(np.load(folder / "fold_0" / "oof.npz")["logits"])
    assert np.abs(logits[0] - logits[1]).max() <= 1e-4 * logits[0].std()


def test_a_new_classifier_starts_as_a_logistic_regression_on_either_engine(offline: Path, digits: Path) -> None:
    """Its probabilities are scikit-learn's on timm's own features of the fold's training images."""
    import cv2
    import timm
    import torch
    from scipy.special import softmax
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    state = state_of("test_resnet")
    hub_cache(offline, registry.get("test_resnet"), state)
    network = timm.create_model("test_resnet", num_classes=0).eval()
    network.load_state_dict({n: torch.as_tensor(v) for n, v in state.items()}, strict=False)
    for engine in ENGINES:
        asked = ("--optim.head_init", "probe", "--optim.batch_norm", "fixed")
        folder = train(engine, "test_resnet", digits, offline / engine, "pretrained", *asked)
        prep = results.card(folder).preprocessing
        plain = EvalTransform(prep)
        rows = csvfile.read(folder / "folds.csv", ("ID", "target", "fold"))
        features = []
        for row in rows:
            image = cv2.imread(str(digits / "train" / row.cells["ID"]))[..., ::-1]
            pixels = torch.from_numpy((plain(image) / 255 - prep.mean) / prep.std).float().permute(2, 0, 1)[None]
            with torch.no_grad():
                features.append(network(pixels)[0].numpy())
        labels, held = (np.array([int(row.cells[c]) for row in rows]) for c in ("target", "fold"))
        found, _ = loading.read(folder / "fold_0" / "best" / "model.safetensors")
        inputs = np.array(features, np.float64)
        got = softmax(inputs @ found["fc.weight"].T + found["fc.bias"], axis=1)
        errors = []
        for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
            model.fit(inputs[held != 0], labels[held != 0])
            errors.append(np.abs(model.predict_proba(inputs) - got).max())
        assert min(errors) < 5e-3, engine


def truncated(folder: Path) -> tuple[str, tuple[str, ...]]:
    save_file(state_of("test_vit"), folder / "truncated.safetensors")
    (folder / "truncated.safetensors").write_bytes((folder / "truncated.safetensors").read_bytes()[:-100])
    return "truncated.safetensors", ("damaged", "truncated.safetensors")


def of_another_width(folder: Path) -> tuple[str, tuple[str, ...]]:
    state = state_of("test_vit")
    state["blocks.0.mlp.fc1.weight"] = state["blocks.0.mlp.fc1.weight"][1:].contiguous()
    save_file(state, folder / "wide.safetensors")
    return "wide.safetensors", ("test_vit", "1 mis-shaped: blocks.0.mlp.fc1.weight", "instead of")


def of_another_family(folder: Path) -> tuple[str, tuple[str, ...]]:
    save_file(state_of("test_resnet"), folder / "resnet.safetensors")
    return "resnet.safetensors", ("not recognised as test_vit's", "bn1.running_var", "wanted are timm's (patch_embed")


@pytest.mark.parametrize("damage", [truncated, of_another_width, of_another_family], ids=lambda f: f.__name__)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_that_does_not_fit_is_one_line_and_no_checkpoint(engine, damage, offline: Path, digits: Path) -> None:
    name, said = damage(offline)
    with pytest.raises(WeightsError) as caught:
        train(engine, "test_vit", digits, offline / "runs", str(offline / name))
    assert "\n" not in str(caught.value)
    for words in said:
        assert words in str(caught.value)
    assert not list(offline.glob("runs/**/*.safetensors"))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cached_file_of_another_sha256_is_refused(engine: str, offline: Path, digits: Path) -> None:
    blob = hub_cache(offline, registry.get("test_vit"), state_of("test_vit"))
    changed = bytearray(blob.read_bytes())
    changed[-1] ^= 1
    blob.write_bytes(changed)
    with pytest.raises(WeightsError, match="SHA-256"):
        train(engine, "test_vit", digits, offline / "runs", "pretrained")


def test_nothing_is_half_loaded() -> None:
    """One name of many is wrong, so no array may be set."""
    spec = registry.get("test_vit", image_size=SIZE, num_classes=10)
    mine, theirs = ports.create(spec), torch_model.build(spec)
    before = layers.canonical(mine), torch_model.to_arrays(torch_model.canonical_tensors(theirs))
    new = {name: value + 1 for name, value in before[0].items()}
    new["norm.weight"] = new["norm.weight"][:-1]
    for load_into, network in ((layers.load_canonical, mine), (torch_model.load_canonical, theirs)):
        with pytest.raises(WeightsError, match=r"1 mis-shaped: norm\.weight"):
            load_into(network, new)
    after = layers.canonical(mine), torch_model.to_arrays(torch_model.canonical_tensors(theirs))
    for old, kept in zip(before, after, strict=True):
        for name, value in old.items():
            np.testing.assert_array_equal(kept[name], value, err_msg=name)
