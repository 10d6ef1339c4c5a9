"""Weights files and checkpoint folders: read, written, found, fitted, and refused when damaged."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.models._manipulate import adapt_input_conv

from backends import load
from config.errors import CheckpointError, WeightsError
from models import manifest, registry
from models.card import CARD_KEY, Card
from models.weights import loading
from tests import tiny

ROOT = Path(__file__).parents[2]


def state_of(arch: str, **options: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {n: t.contiguous() for n, t in timm.create_model(arch, **options).state_dict().items()}


def hub_cache(home: Path, spec: registry.ModelSpec, state: dict[str, torch.Tensor]) -> Path:
    """A Hugging Face cache, laid out as the hub client does, that holds `state` as the pretrained weights."""
    repo = home / "hub" / f"models--{spec.hub_id.replace('/', '--')}"
    commit = "0" * 40
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (repo / folder).mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    save_file(state, repo / "blobs" / "new")
    blob = repo / "blobs" / hashlib.sha256((repo / "blobs" / "new").read_bytes()).hexdigest()
    (repo / "blobs" / "new").rename(blob)
    (repo / f"snapshots/{commit}" / "model.safetensors").symlink_to(f"../../blobs/{blob.name}")
    return blob


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def test_pretrained_weights_reach_the_engine_through_the_hub_cache(offline: Path) -> None:
    spec = registry.get("test_resnet")
    state = state_of("test_resnet")
    hub_cache(offline, spec, state)
    found = loading.resolve(spec, "pretrained")
    assert found is not None
    assert found.weights.keys() == {n for n in state if not n.endswith("num_batches_tracked")}
    fitted, notes = loading.fit(found.weights, spec)
    assert notes == []
    session = load("torch").open(spec, fitted)
    images = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
    reference = timm.create_model("test_resnet").eval()
    reference.load_state_dict(state)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.preprocessing.mean, spec.preprocessing.std))
    with torch.no_grad():
        expected = reference((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std).numpy()
    np.testing.assert_allclose(session.logits(images), expected, rtol=1e-4, atol=1e-5)


def test_a_fresh_process_finds_the_cache_by_hf_home(tmp_path: Path) -> None:
    spec = registry.get("test_resnet")
    hub_cache(tmp_path, spec, state_of("test_resnet"))
    code = (
        "from models import registry; from models.weights import loading as w; "
        "print(len(w.resolve(registry.get('test_resnet'), 'pretrained').weights))"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_a_changed_hub_file_is_refused_by_its_sha256(offline: Path) -> None:
    spec = registry.get("test_resnet")
    blob = hub_cache(offline, spec, state_of("test_resnet"))
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(WeightsError, match="SHA-256"):
        loading.resolve(spec, "pretrained")


@pytest.mark.usefixtures("offline")
def test_no_network_names_both_alternatives_in_one_line() -> None:
    with pytest.raises(WeightsError) as caught:
        loading.resolve(registry.get("convnext_base"), "pretrained")
    text = str(caught.value)
    assert "--weights PATH" in text
    assert "--weights none" in text
    assert "timm/convnext_base" in text
    assert "\n" not in text


def test_a_tag_without_weights_says_so() -> None:
    bare = next(s for a in registry.names() if not (s := registry.get(a)).hub_id)
    with pytest.raises(WeightsError, match="no pretrained weights"):
        loading.resolve(bare, "pretrained")


def test_weights_none_start_from_fresh_ones() -> None:
    assert loading.resolve(registry.get("resnet18"), "none") is None


def test_any_floating_type_becomes_float32_and_timms_own_entries_are_left_out(tmp_path: Path) -> None:
    values = {
        "a": torch.randn(3, 2, dtype=torch.bfloat16),
        "b": torch.randn(4, dtype=torch.float16),
        "c": torch.randn(2, dtype=torch.float64),
        "d": torch.randn(2, 3),
    }
    ignored = {"bn.num_batches_tracked": torch.tensor(3), "attn.relative_position_index": torch.zeros(4, dtype=int)}
    for name, held in {"all": values, "no_bf16": {n: t for n, t in values.items() if n != "a"}}.items():
        save_file({**held, **ignored}, tmp_path / name, metadata={"format": "pt"})
        got, metadata = loading.read(tmp_path / name)
        assert metadata == {"format": "pt"}
        assert got.keys() == held.keys()
        for key, tensor in held.items():
            assert got[key].dtype == np.float32
            np.testing.assert_array_equal(got[key], tensor.float().numpy())


def test_written_weights_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    held = {
        "a.weight": rng.random((2, 3, 4, 5), np.float32).transpose(3, 0, 1, 2),
        "b": np.array([np.nan, 1, 2], np.float32),
    }
    loading.write(tmp_path / "model.safetensors", held, {CARD_KEY: "é"})
    got, metadata = loading.read(tmp_path / "model.safetensors")
    assert metadata == {CARD_KEY: "é"}
    for name, value in held.items():
        np.testing.assert_array_equal(got[name], value)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "w.safetensors"
    loading.write(path, {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), np.float32)}, {"k": "v"})
    return path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_gives_weights_or_a_weights_error(
    data: st.DataObject, small_file: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(small_file)
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    try:
        got, _ = loading.read(path)
    except WeightsError as error:
        assert str(path) in str(error)
    else:
        assert all(a.dtype == np.float32 for a in got.values())


def test_truncated_missing_and_foreign_files_are_named(tmp_path: Path, small_file: bytes) -> None:
    spec = registry.get("resnet18")
    contents = {"truncated": small_file[:-3], "pickle": b"\x80\x04" + b"x" * 100, "empty": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=name):
            loading.resolve(spec, tmp_path / name)
    with pytest.raises(WeightsError, match="no such file"):
        loading.resolve(spec, str(tmp_path / "absent.safetensors"))
    save_file({"a": torch.arange(4)}, tmp_path / "integers")
    with pytest.raises(WeightsError, match="int64"):
        loading.read(tmp_path / "integers")


def test_a_head_of_another_size_is_drawn_anew_and_said() -> None:
    spec = replace(registry.get("test_resnet"), num_classes=7)
    source = {n: t.numpy() for n, t in state_of("test_resnet").items() if "tracked" not in n}
    fitted, notes = loading.fit(source, spec, seed=3)
    assert fitted["fc.weight"].shape == (7, source["fc.weight"].shape[1])
    assert not fitted["fc.bias"].any()
    assert 0.01 < fitted["fc.weight"].std() < 0.03
    assert len(notes) == 1
    assert "1000 classes" in notes[0]
    assert "fc" in notes[0]
    again, _ = loading.fit(source, spec, seed=3)
    other, _ = loading.fit(source, spec, seed=4)
    np.testing.assert_array_equal(again["fc.weight"], fitted["fc.weight"])
    assert not np.array_equal(other["fc.weight"], fitted["fc.weight"])
    assert source["fc.weight"].shape[0] == 1000, "the source was changed"
    load("torch").open(spec, fitted)


def test_features_have_no_head() -> None:
    spec = replace(registry.get("test_resnet"), num_classes=0)
    source = {n: t.numpy() for n, t in state_of("test_resnet").items() if "tracked" not in n}
    fitted, notes = loading.fit(source, spec)
    assert not any(n.startswith("fc") for n in fitted)
    assert "dropped" in notes[0]


@pytest.mark.parametrize(
    "name",
    [
        "convnext_base.fb_in22k_ft_in1k",
        "convnextv2_atto.fcmae",
        "convnext_tiny.dinov3_lvd1689m",
        "vit_small_patch14_dinov2.lvd142m",
        "vit_base_patch16_siglip_224.webli",
        "eva02_tiny_patch14_224.mim_in22k",
        "swin_tiny_patch4_window7_224.ms_in1k",
        "tf_efficientnetv2_b0.in1k",
        "mobilenetv3_small_050.lamb_in1k",
        "resnet50.bamboo",
        "regnety_320.seer",
        "coatnet_nano_rw_224.sw_in1k",
    ],
)
def test_each_kind_of_pretrained_model_gets_a_head_that_fits(name: str) -> None:
    """Also those whose hub weights have no classifier: timm's own shapes are the reference."""
    spec = registry.get(name, num_classes=7)
    with torch.device("meta"):
        on_hub = timm.create_model(spec.name, num_classes=spec.hub_classes).state_dict()
        wanted = timm.create_model(spec.name, num_classes=7).state_dict()
    source = {n: np.zeros(t.shape, np.float32) for n, t in on_hub.items() if "tracked" not in n}
    fitted, notes = loading.fit(source, spec)
    loading.check(fitted, {n: tuple(t.shape) for n, t in wanted.items() if "tracked" not in n})
    assert len(notes) == 1


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_input_channels_are_made_as_timm_does(channels: int) -> None:
    spec = registry.get("convnext_atto", in_chans=channels)
    old = torch.randn(8, 3, 4, 4)
    fitted, notes = loading.fit({"stem.0.weight": old.numpy(), **head(spec)}, spec)
    np.testing.assert_allclose(fitted["stem.0.weight"], adapt_input_conv(channels, old).numpy(), rtol=1e-6, atol=1e-6)
    assert str(channels) in notes[0]


def head(spec: registry.ModelSpec) -> dict[str, np.ndarray]:
    return {"head.fc.weight": np.zeros((spec.num_classes, 4), np.float32)}


def test_gem_brings_its_power() -> None:
    spec = registry.get("test_resnet", global_pool="gem")
    source = {n: t.numpy() for n, t in state_of("test_resnet").items() if "tracked" not in n}
    fitted, notes = loading.fit(source, spec)
    assert "global_pool.p" in notes[0]
    load("torch").open(spec, fitted)


def test_position_tables_follow_the_image_size() -> None:
    spec = registry.get("test_vit", image_size=96)
    source = {n: t.numpy() for n, t in state_of("test_vit").items()}
    fitted, notes = loading.fit(source, spec)
    assert "96 pixels" in notes[0]
    load("torch").open(spec, fitted)


def test_the_wrong_family_lists_missing_unexpected_and_mis_shaped_names() -> None:
    source = {n: t.numpy() for n, t in state_of("test_convnext").items()}
    with pytest.raises(WeightsError) as caught:
        load("torch").open(registry.get("convnext_atto"), loading.fit(source, registry.get("convnext_atto"))[0])
    for word in ("missing", "mis-shaped", "stem.0.weight (24, 3, 4, 4) instead of (40, 3, 4, 4)"):
        assert word in str(caught.value)


def checkpoint(folder: Path, ema: bool) -> Path:
    folder.mkdir()
    spec = tiny.spec("convnext", num_classes=2)
    card = Card("convnext_atto", ("cat", "dog"), spec.preprocessing).to_json()
    loading.write(folder / "model.safetensors", {"w": np.array([1], np.float32)}, {CARD_KEY: card})
    if ema:
        loading.write(folder / "ema.safetensors", {"w": np.array([2], np.float32)}, {CARD_KEY: card})
    (folder / "state.json").write_text("{}")
    manifest.write(folder)
    return folder


@pytest.mark.parametrize("ema", [False, True])
def test_a_checkpoint_folder_gives_its_ema_weights_where_it_has_them(tmp_path: Path, ema: bool) -> None:
    found = loading.resolve(registry.get("convnext_atto"), checkpoint(tmp_path / "best", ema))
    assert found is not None
    assert found.weights["w"] == (2 if ema else 1)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="convnext_atto, not of resnet18"):
        loading.resolve(registry.get("resnet18"), checkpoint(tmp_path / "best", False))


def test_the_manifest_lists_the_sha256_of_each_file(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "best", True)
    listed = json.loads((folder / "manifest.json").read_text())
    assert listed == {
        n: hashlib.sha256((folder / n).read_bytes()).hexdigest()
        for n in ("ema.safetensors", "model.safetensors", "state.json")
    }
    manifest.verify(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "model.onnx").write_text("mine")
    manifest.verify(folder)


def test_missing_changed_and_added_files_are_named(tmp_path: Path) -> None:
    def gone(folder: Path) -> None:
        (folder / "state.json").unlink()

    def changed(folder: Path) -> None:
        (folder / "state.json").write_text("[]")

    def added(folder: Path) -> None:
        (folder / "state.json").rename(folder / "old.json")
        (folder / "state.json").write_text("{}")

    for number, (damage, name) in enumerate([(gone, "state.json"), (changed, "state.json"), (added, "old.json")]):
        folder = checkpoint(tmp_path / str(number), False)
        damage(folder)
        with pytest.raises(CheckpointError, match=name):
            manifest.verify(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"../x": "0"}', '{"a": 3}', "\ud800"])
def test_an_unreadable_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        manifest.verify(tmp_path)


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        loading.resolve(registry.get("resnet18"), tmp_path)
