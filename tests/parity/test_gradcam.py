"""Grad-CAM on both engines: against published facts on torch, and MLX against torch for each family.

pytorch-grad-cam 1.5.7 itself wants a second OpenCV, so it is no part of the tests. Run once beside them on the tiny
networks below, it gave the same maps to 5e-6 (resnet, convnext, efficientnet, swin, vit; torch 2.15 on the CPU).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from config.errors import ConfigError
from infer.explain import gradcam
from infer.runtimes import gradcam_mlx, gradcam_torch
from models import manifest
from models.card import CARD_KEY, Card
from models.families import FAMILIES
from models.registry import ModelSpec
from models.weights import loading as weights_file
from tests.parity.drawn import images, normalised, torch_network, weights
from tests.parity.shrink import shrunk

CNN = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 16}
SWIN = {"window_size": 4, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 3]}
MAXVIT = {
    "embed_dim": [32, 64],
    "depths": [1, 1],
    "block_type": ["M", "M"],
    "stem_width": [8, 16],
    "head_hidden_size": 24,
}
TINY: dict[str, tuple[str, int, dict[str, Any]]] = {
    "convnext": ("convnext_atto", 64, CNN),
    "resnet": ("resnet26d", 64, {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_width": 8}),
    "efficientnet": ("test_efficientnet", 64, {}),
    "mobilenetv3": ("mobilenetv3_small_050", 64, {}),
    "regnet": ("regnetx_002", 64, {}),
    "vit": ("vit_tiny_patch16_224", 64, VIT),
    "eva": ("vit_small_patch16_rope_224", 64, VIT),
    "swin": ("swin_tiny_patch4_window7_224", 32, SWIN),
    "swinv2": ("swinv2_tiny_window8_256", 32, {**SWIN, "window_size": 4}),
    "maxvit": ("maxvit_tiny_tf_224", 64, MAXVIT),
}
CLASSES = np.array([0, 3, 4])


def spec_of(family: str) -> ModelSpec:
    arch, size, args = TINY[family]
    found = shrunk(arch, size, args)
    assert found.family == family
    return found


def felt(engine: Any, spec: ModelSpec) -> gradcam.Activations:
    return engine.open(spec, weights(spec), FAMILIES[spec.family].gradcam)(images(spec, 3), CLASSES)


def test_tokens_that_the_pooling_counts_are_no_patches() -> None:
    spec = shrunk("test_vit3", 64, VIT)
    mine, theirs = felt(gradcam_mlx, spec), felt(gradcam_torch, spec)
    np.testing.assert_allclose(mine.features, theirs.features, atol=1e-4)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_mlx_feels_what_torch_feels(family: str) -> None:
    spec = spec_of(family)
    mine, theirs = felt(gradcam_mlx, spec), felt(gradcam_torch, spec)
    assert theirs.features.shape[1] == theirs.features.shape[2] > 1
    for here, there in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(here, there, atol=1e-4 * np.abs(there).max(), rtol=0)


def test_before_average_pooling_it_is_the_class_activation_map() -> None:
    """Selvaraju et al. 2017, section 3.1: on such a network Grad-CAM is CAM (Zhou 2016), the classifier's own row
    applied at each place, but for its scale."""
    spec = spec_of("resnet")
    network = torch_network(spec, weights(spec)).eval()
    pixels = torch.from_numpy(normalised(spec, images(spec, 3))).permute(0, 3, 1, 2)
    with torch.no_grad():
        places = network.forward_features(pixels)
        cam = torch.einsum("nchw,nc->nhw", places, network.fc.weight[CLASSES]).relu()
        want = functional.interpolate(cam[:, None], size=64, mode="bilinear", align_corners=False)[1:, 0]
    want -= want.amin(dim=(1, 2), keepdim=True)
    want /= want.amax(dim=(1, 2), keepdim=True)
    got = gradcam.combine(felt(gradcam_torch, spec), 64)[1:]
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert got.max() == pytest.approx(1, abs=1e-5)


def test_a_transformers_gradient_is_the_slope_of_the_logit() -> None:
    """Finite differences in float64, taken at the patches alone; the class token keeps its place."""
    spec = spec_of("vit")
    network = torch_network(spec, weights(spec)).double().eval()
    pixels = torch.from_numpy(normalised(spec, images(spec, 3))).permute(0, 3, 1, 2).double()
    seen = felt(gradcam_torch, spec)
    step = 1e-4 * np.random.default_rng(0).standard_normal(seen.features.shape)

    def score(sign: float) -> np.ndarray:
        moved = torch.from_numpy(sign * step).flatten(1, 2)
        hook = network.blocks[-1].attn.register_forward_pre_hook(
            lambda _, given: (torch.cat([given[0][:, :1], given[0][:, 1:] + moved], dim=1),)
        )
        with torch.no_grad():
            logits = network(pixels).numpy()
        hook.remove()
        return logits[np.arange(3), CLASSES]

    slope = (score(1) - score(-1)) / 2
    np.testing.assert_allclose((seen.gradients * step).sum(axis=(1, 2, 3)), slope, rtol=1e-3)


def saved(path: Path, spec: ModelSpec) -> Path:
    card = Card(spec.name, tuple("abcde"), spec.preprocessing, {"image_size": spec.preprocessing.size}, "torch")
    path.mkdir()
    weights_file.write(path / "model.safetensors", weights(spec), {CARD_KEY: card.to_json()})
    manifest.write(path)
    return path


def test_a_checkpoint_explains_itself_on_either_engine(tmp_path: Path) -> None:
    spec = shrunk("test_efficientnet", 64, {})
    path, shown = saved(tmp_path / "best", spec), images(spec, 9)
    classes = np.arange(9) % 5
    theirs, mine = (gradcam.open(path, engine).heatmaps(shown, classes) for engine in ("torch", "mlx"))
    assert theirs.shape == (9, 64, 64)
    np.testing.assert_allclose(mine, theirs, atol=1e-3)
    np.testing.assert_array_equal(gradcam.open(path).heatmaps(shown, classes), theirs)  # who trained it, explains it
    tiny = gradcam.open(saved(tmp_path / "tiny", shrunk("test_efficientnet", 32, {})), "torch")
    with pytest.raises(ConfigError, match="at 32 pixels its features are one place"):
        tiny.heatmaps(images(shrunk("test_efficientnet", 32, {}), 1), [0])


def test_an_artefact_without_gradients_is_refused(tmp_path: Any) -> None:
    file = tmp_path / "model.onnx"
    file.touch()
    with pytest.raises(ConfigError, match="onnx gives no gradients"):
        gradcam.open(file)
