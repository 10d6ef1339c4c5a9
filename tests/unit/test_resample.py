"""Weights for another image size are what timm makes of them when it loads a checkpoint."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional

from config.errors import ConfigError, WeightsError
from models import registry
from models.registry import ModelSpec
from models.weights.resample import resample, resize, resize_bias_table

VIT = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}
SWIN = {"embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 7}
COATNET = {"embed_dim": [32, 32], "depths": [1, 2], "block_type": ["C", "T"], "stem_width": [8, 8]}
MAXVIT = {"embed_dim": [32, 32], "depths": [1, 1], "block_type": ["M", "M"], "stem_width": [8, 8]}


def spec_of(arch: str, args: dict[str, Any], size: int) -> ModelSpec:
    full = registry.get(arch, image_size=size, num_classes=3)
    return replace(full, args={**full.args, **args})


def model_of(spec: ModelSpec, args: dict[str, Any]) -> torch.nn.Module:
    model = timm.create_model(spec.arch, img_size=spec.preprocessing.size, num_classes=3, **args)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


@pytest.mark.parametrize(
    ("arch", "args", "old", "new"),
    [
        ("vit_tiny_patch16_224", VIT, 32, 56),
        ("vit_tiny_patch16_224", VIT, 56, 32),
        ("vit_base_patch14_reg4_dinov2", VIT, 40, 61),
        ("vit_betwixt_patch16_reg4_gap_256", VIT, 32, 40),
        ("vit_base_patch16_siglip_224", VIT, 32, 40),
        ("eva02_tiny_patch14_336", VIT, 32, 56),
        ("vit_base_patch16_rope_mixed_ape_224", VIT, 32, 24),
        ("vit_base_patch16_dinov3", VIT, 32, 64),
        # The windows shrink with the map (7 to 5 and 3), and grow back.
        ("swin_tiny_patch4_window7_224", SWIN, 64, 20),
        ("swin_tiny_patch4_window7_224", SWIN, 20, 64),
        ("swinv2_tiny_window8_256", SWIN, 64, 20),
        ("maxvit_tiny_tf_224", {**MAXVIT, "head_hidden_size": 8}, 64, 224),
        ("maxvit_nano_rw_256", MAXVIT, 224, 64),
        # Attention over the whole map of a stage, 16 and 24 tokens a side.
        ("coatnet_nano_rw_224", COATNET, 64, 96),
        ("coatnext_nano_rw_224", COATNET, 96, 64),
    ],
)
def test_position_tables_are_resampled_as_timm_loads_a_checkpoint(arch: str, args: dict, old: int, new: int) -> None:
    before, after = spec_of(arch, args, old), spec_of(arch, args, new)
    state = {n: v for n, v in model_of(before, args).state_dict().items() if not n.endswith("num_batches_tracked")}
    larger = model_of(after, args)
    module = importlib.import_module(type(larger).__module__)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = module.checkpoint_filter_fn(dict(state), larger)
    mine = resample({name: value.numpy() for name, value in state.items()}, after)
    assert mine.keys() == want.keys()
    for name, value in want.items():
        assert mine[name].shape == tuple(larger.state_dict()[name].shape), name
        np.testing.assert_allclose(mine[name], value.numpy(), rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("old", "new"), [(14, 24), (24, 14), (16, 37), (37, 16), (7, 8), (14, 3), (2, 9)])
def test_bicubic_is_torchs(old: int, new: int) -> None:
    image = np.random.default_rng(0).standard_normal((old, old + 1, 5)).astype(np.float32)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    want = functional.interpolate(planes.double(), size=(new, new + 2), mode="bicubic", antialias=True)[0]
    np.testing.assert_allclose(resize(image, new, new + 2), want.permute(1, 2, 0), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("old", "new"), [(7, 12), (12, 7), (7, 24), (8, 7), (7, 3), (12, 6), (2, 9)])
def test_bias_table_is_timms(old: int, new: int) -> None:
    table = np.random.default_rng(0).standard_normal(((2 * old - 1) ** 2, 3)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = timm.layers.resize_rel_pos_bias_table(torch.from_numpy(table), (new, new), ((2 * new - 1) ** 2, 3))
    np.testing.assert_allclose(resize_bias_table(table, new), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("arch", [*registry.names("coat*_224"), "maxvit_tiny_tf_384", "swin_base_patch4_window12_384"])
def test_at_its_own_size_nothing_is_changed(arch: str) -> None:
    spec = registry.get(arch)
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in timm.create_model(arch).state_dict().items() if "position" in n}
    kept = {n: np.broadcast_to(np.float32(0), shape) for n, shape in shapes.items() if not n.endswith("index")}
    assert {n: v.shape for n, v in resample(kept, spec).items()} == {n: v.shape for n, v in kept.items()}


def test_what_fits_is_the_same_array() -> None:
    spec = spec_of("vit_tiny_patch16_224", VIT, 32)
    weights = {"pos_embed": np.zeros((1, 17, 16), np.float32), "head.bias": np.zeros(3, np.float32)}
    assert all(resample(weights, spec)[name] is value for name, value in weights.items())


def test_index_tables_of_older_files_are_left_out() -> None:
    saved = {"layers.0.blocks.1.attn_mask": np.zeros(1, np.float32), "norm.bias": np.zeros(8, np.float32)}
    saved["layers.0.blocks.0.attn.relative_position_index"] = np.zeros((4, 4), np.float32)
    assert list(resample(saved, spec_of("swin_tiny_patch4_window7_224", SWIN, 32))) == ["norm.bias"]


def test_a_table_of_another_architecture_is_refused() -> None:
    vit, swin = spec_of("vit_tiny_patch16_224", VIT, 32), spec_of("swin_tiny_patch4_window7_224", SWIN, 32)
    with pytest.raises(WeightsError, match="pos_embed has 12 positions"):
        resample({"pos_embed": np.zeros((1, 12, 16), np.float32)}, vit)
    with pytest.raises(WeightsError, match=r"layers\.5"):
        resample({"layers.5.blocks.0.attn.relative_position_bias_table": np.zeros((9, 1), np.float32)}, swin)
    with pytest.raises(WeightsError, match="168 offsets"):
        resample({"layers.0.blocks.0.attn.relative_position_bias_table": np.zeros((168, 1), np.float32)}, swin)


def test_an_image_smaller_than_a_patch_is_refused() -> None:
    with pytest.raises(ConfigError, match="less than one patch"):
        resample({"pos_embed": np.zeros((1, 17, 16), np.float32)}, spec_of("vit_tiny_patch16_224", VIT, 7))
