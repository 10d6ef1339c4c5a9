"""`python -m models push`: timm loads what is shared and answers as Tandem does; the card says what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

import infer
from config import load
from config.errors import WeightsError
from infer import runtimes
from models import manifest, pretrained, registry
from models.__main__ import main
from models.card import CARD_KEY, Card, read_card
from models.weights import files, loading
from tests import hub

NAMES = ("rose", "lily", "fern")
# One of each family that has its own way from options to timm's arguments.
MODELS = {
    "test_resnet": {},
    "test_efficientnet": {"global_pool": "max"},
    "test_vit": {"image_size": 96},
    "test_convnext": {},
    "swin_tiny_patch4_window7_224": {"image_size": 64},
}


def trained(folder: Path, arch: str, weights: str = "none", fit: str = "crop", **options: object) -> Path:
    """The run `folder`, whose only fold has a network with drawn weights and scores of 20 images."""
    best = folder / "fold_0" / "best"
    best.mkdir(parents=True)
    spec = registry.get(arch, num_classes=len(NAMES), **{"image_size": 64, **options})
    state = timm.create_model(
        arch, num_classes=3, **({"img_size": spec.preprocessing.size} if takes_size(spec) else {})
    )
    draw = np.random.default_rng(0)
    arrays = {n: t.numpy() for n, t in state.state_dict().items() if "num_batches" not in n}
    arrays = {n: v + draw.uniform(0.0, 0.1, v.shape).astype(np.float32) for n, v in arrays.items()}
    prep = replace(spec.preprocessing, fit=fit)
    card = Card(spec.name, NAMES, prep, dict(spec.options), trained_with="torch", class_counts=(9, 8, 3))
    files.write(best / "model.safetensors", arrays, {CARD_KEY: card.to_json()})
    (best / "state.json").write_text("{}")
    manifest.write(best)
    words = f"--data.root {folder}/flowers --model {arch} --weights {weights} --optim.lr 1e-3 --train.batch_size 8"
    (folder / "config.yaml").write_text(load.to_yaml(load.parse(words.split(), prog="test")))
    row = {"fold": 0, "accuracy": 0.95, "macro_f1": 0.9375, "log_loss": 0.25}
    (folder / "fold_0" / "result.yaml").write_text(yaml.safe_dump(row))
    (folder / "fold_results.yaml").write_text(yaml.safe_dump({"best_fold": 0, "folds": [row]}))
    np.savez(folder / "fold_0" / "oof.npz", targets=np.zeros(20, np.int64))
    return folder


def takes_size(spec: registry.ModelSpec) -> bool:
    return spec.family in ("vit", "swin")


def answers(best: Path, pixels: np.ndarray) -> np.ndarray:
    """Tandem's logits, in torch."""
    opened = runtimes.open(best, "torch", device="cpu")
    try:
        return opened.logits(pixels)
    finally:
        opened.close()


def of_timm(model: torch.nn.Module, pixels: np.ndarray) -> np.ndarray:
    config = timm.data.resolve_data_config({}, model=model)
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    with torch.inference_mode():
        return model.eval()(((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)).numpy()


@pytest.mark.parametrize("arch", MODELS)
def test_timm_answers_as_tandem_and_tandem_reads_it_back(arch: str, tmp_path: Path, capsys) -> None:
    best = trained(tmp_path / "run", arch, **MODELS[arch]) / "fold_0" / "best"
    out = tmp_path / "shared"
    assert main(["push", str(tmp_path / "run"), "--out", str(out)]) == 0
    assert f"local-dir:{out}" in capsys.readouterr().out
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert tuple(model.pretrained_cfg["label_names"]) == NAMES
    prep = read_card(best).preprocessing
    config = timm.data.resolve_data_config({}, model=model)
    assert tuple(config["input_size"]) == (3, prep.size, prep.size)
    assert (tuple(config["mean"]), tuple(config["std"]), config["crop_pct"]) == (prep.mean, prep.std, prep.crop_pct)
    pixels = np.random.default_rng(1).integers(0, 256, (3, prep.size, prep.size, 3), dtype=np.uint8)
    expected = answers(best, pixels)
    np.testing.assert_allclose(of_timm(model, pixels), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    again = pretrained.checkpoint(str(out))
    card = read_card(again)
    assert (card.class_names, card.preprocessing) == (NAMES, prep)
    np.testing.assert_allclose(answers(again, pixels), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_timms_own_transform_and_labels_predict_as_tandem_does(fit: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "test_resnet", fit=fit)
    assert main(["push", str(run), "--out", str(tmp_path / "shared")]) == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'shared'}", pretrained=True).eval()
    image = np.random.default_rng(2).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    with torch.inference_mode():
        expected = model(transform(Image.fromarray(image))[None]).softmax(-1).numpy()
    with infer.load(run / "fold_0" / "best", device="cpu") as runner:
        found = runner.predict(image)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    assert found.names == tuple(model.pretrained_cfg["label_names"])


def test_the_card_has_the_scores_the_data_set_and_the_licence_of_the_base_weights(tmp_path: Path) -> None:
    run, scores = trained(tmp_path / "run", "test_resnet", weights="pretrained"), tmp_path / "evaluation"
    scores.mkdir()
    held = {"members": f"{run}/fold_0/best (torch)", "data": "/home/me/meadow", "split": "test", "images": 40}
    held |= {"accuracy": 0.875, "macro_f1": 0.8, "log_loss": 0.5}
    (scores / "metrics.json").write_text(json.dumps(held))
    words = ["push", str(run), "me/flowers", "--out", str(tmp_path / "shared"), "--evaluation", str(scores)]
    assert main(words) == 0
    card = ModelCard.load(tmp_path / "shared" / "README.md")
    facts = card.data
    assert (facts.license, facts.library_name, facts.base_model) == ("apache-2.0", "timm", "timm/test_resnet.r160_in1k")
    measured = {
        (r.dataset_split, r.metric_type): (r.metric_value, r.dataset_args["images"]) for r in facts.eval_results
    }
    assert measured == {
        ("validation", "accuracy"): (0.95, 20),
        ("validation", "f1"): (0.9375, 20),
        ("validation", "log_loss"): (0.25, 20),
        ("test", "accuracy"): (0.875, 40),
        ("test", "f1"): (0.8, 40),
        ("test", "log_loss"): (0.5, 40),
    }
    assert {r.dataset_name for r in facts.eval_results} == {"flowers"}
    assert "hf-hub:me/flowers" in card.text
    assert "meadow, test split" in card.text
    assert "/home/me" not in card.content
    assert str(tmp_path) not in card.content


def test_a_licence_that_the_hub_does_not_list_is_other_and_one_that_is_not_known_is_left_out(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "test_resnet", weights="none")
    assert main(["push", str(run), "--out", str(tmp_path / "a")]) == 0
    assert ModelCard.load(tmp_path / "a" / "README.md").data.license is None
    assert main(["push", str(run), "--out", str(tmp_path / "b"), "--license", "house", "--dataset", "herbs"]) == 0
    facts = ModelCard.load(tmp_path / "b" / "README.md").data
    assert (facts.license, facts.license_name, facts.base_model) == ("other", "house", None)
    assert {r.dataset_name for r in facts.eval_results} == {"herbs"}


@pytest.fixture
def served(tmp_path: Path, monkeypatch) -> Iterator[type[hub.Handler]]:
    with hub.serving() as (address, handler):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
        yield handler


def test_an_upload_is_loaded_from_the_hub_by_timm_and_by_tandem(served, tmp_path: Path, capsys) -> None:
    best = trained(tmp_path / "run", "test_resnet") / "fold_0" / "best"
    assert main(["push", str(best), "me/flowers", "--private"]) == 0
    assert "me/flowers" in capsys.readouterr().out
    assert served.created == {"me/flowers": True}
    assert {name for _, name in served.files} >= {"README.md", "config.json", "model.safetensors"}
    pixels = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    expected = answers(best, pixels)
    model = timm.create_model("hf-hub:me/flowers", pretrained=True, cache_dir=str(tmp_path / "timm"))
    np.testing.assert_allclose(of_timm(model, pixels), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(answers(pretrained.checkpoint("hf:me/flowers"), pixels), expected, rtol=1e-6, atol=1e-6)
    spec = registry.get("test_resnet", num_classes=3)
    found = loading.resolve(spec, "hf:me/flowers")
    kept, notes = loading.fit(found.weights, spec)
    assert notes == []
    np.testing.assert_array_equal(kept["fc.weight"], found.weights["fc.weight"])
    fitted, notes = loading.fit(found.weights, registry.get("test_resnet", num_classes=5))
    assert fitted["fc.weight"].shape[0] == 5
    assert "a classifier of 3 classes" in notes[0]
    with pytest.raises(WeightsError, match="use --model test_resnet"):
        loading.resolve(registry.get("test_vit"), "hf:me/flowers")
    assert main(["push", str(best), "me/flowers"]) == 0, "a second upload is a second commit"


def test_a_refused_token_a_hub_that_is_away_and_no_token_are_one_line(served, tmp_path, capsys, monkeypatch) -> None:
    run = str(trained(tmp_path / "run", "test_resnet"))
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert main(["push", run, "me/flowers"]) == 1
    assert "refuses the token (401); run `hf auth login`" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    assert main(["push", run, "me/flowers"]) == 1
    assert "cannot reach" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main(["push", run, "me/flowers"]) == 1
    assert "hf auth login" in (said := capsys.readouterr().err)
    assert len(said.splitlines()) == 1
    assert not served.created


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["RUN"], "name the repository"),
        (["RUN", "flowers"], "is not USER/NAME; name your user"),
        (["RUN", "--out", "OUT", "--fold", "3"], "there are 0"),
        (["RUN/fold_0/best", "--out", "OUT", "--fold", "0"], "no run with folds"),
        (["RUN", "--out", "RUN"], "is there already"),
        (["RUN", "--out", "OUT", "--evaluation", "RUN"], "metrics.json"),
        (["RUN/fold_0", "--out", "OUT"], "manifest.json"),
    ],
)
def test_what_cannot_be_shared_says_why(words: list[str], reason: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: hub.TOKEN)
    run = trained(tmp_path / "run", "test_resnet")
    words = [word.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")) for word in words]
    assert main(["push", *words]) in (1, 2)
    said = capsys.readouterr().err
    assert reason in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "mlxim/resnet18"}, "MLX's alone"),
        ({"model_options": {"image_size": 64, "global_pool": "gem"}}, "learned power"),
        ({"model_options": {"image_size": 64, "in_chans": 1}}, "1 channels"),
    ],
)
def test_networks_that_timm_does_not_have_are_refused(change: dict, reason: str, tmp_path: Path, capsys) -> None:
    best = trained(tmp_path / "run", "test_resnet") / "fold_0" / "best"
    arrays, _ = files.read(best / "model.safetensors")
    card = read_card(best)
    changed = Card(**{**vars(card), **change})
    files.write(best / "model.safetensors", arrays, {CARD_KEY: changed.to_json()})
    manifest.write(best)
    assert main(["push", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    assert reason in capsys.readouterr().err


def test_an_evaluation_of_other_members_is_refused(tmp_path: Path, capsys) -> None:
    run, scores = trained(tmp_path / "run", "test_resnet"), tmp_path / "evaluation"
    scores.mkdir()
    held = {"data": "meadow", "split": "test", "images": 40, "accuracy": 1.0, "macro_f1": 1.0, "log_loss": 0.1}
    for members in ("other/fold_1/best (torch)", f"{run}/fold_0/best (torch), {run}/fold_1/best (torch)"):
        (scores / "metrics.json").write_text(json.dumps({**held, "members": members}))
        assert main(["push", str(run), "--out", str(tmp_path / "out"), "--evaluation", str(scores)]) == 2
        assert "evaluate it: python -m infer evaluate --member" in capsys.readouterr().err


def test_a_hub_folder_of_a_network_that_is_built_otherwise_is_refused(tmp_path: Path) -> None:
    assert main(["push", str(trained(tmp_path / "run", "test_resnet")), "--out", str(tmp_path / "shared")]) == 0
    file = tmp_path / "shared" / "config.json"
    config = json.loads(file.read_text())
    for args, reason in (({"act_layer": "gelu"}, "act_layer='gelu'"), ({"global_pool": "catavgmax"}, "catavgmax")):
        file.write_text(json.dumps({**config, "model_args": args}))
        with pytest.raises(WeightsError, match=reason):
            pretrained.checkpoint(str(tmp_path / "shared"))
