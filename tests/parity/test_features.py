"""Pooled features before the classifier: both engines' predictors against timm's own two calls, for each family."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backends.contract import SessionConfig
from backends.mlx import session
from infer.runtimes import GivesFeatures, mlx
from infer.runtimes import torch as torch_predictor
from models import registry
from models.card import Card
from tests.parity import drawn, kinds


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_features_are_timms_on_both_engines(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = kinds.tiny(kinds.ORDINARY[family], monkeypatch)
    weights, shown = drawn.weights(spec), drawn.images(spec, 3)
    network = drawn.torch_network(spec, weights).eval()
    pixels = torch.from_numpy(drawn.normalised(spec, shown)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        wanted = network.forward_head(network.forward_features(pixels), pre_logits=True).numpy()
    card = Card(spec.name, tuple("abcde"), spec.preprocessing)
    for open_one in (torch_predictor.open, mlx.open):
        predictor = open_one(card, spec, weights, device="cpu", compile=False)
        assert isinstance(predictor, GivesFeatures)
        before = predictor.logits(shown)
        found = predictor.features(shown)
        assert found.dtype == np.float32 and found.shape == wanted.shape and wanted.std() > 0.01
        np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-4)
        np.testing.assert_array_equal(predictor.logits(shown), before)  # the classifier is back in its place
        assert predictor.features(shown[:0]).shape == (0, wanted.shape[1])
        predictor.close()


def test_mlx_images_models_give_what_their_classifier_is_given() -> None:
    spec = registry.get("mlxim/efficientnet_b0", num_classes=5, image_size=32)  # its classifier stands in a list
    opened = session.open(spec, None, SessionConfig(compile=False))
    shown = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    weights = opened.state().weights
    again = opened.features(shown) @ weights[f"{spec.classifier}.weight"].T + weights[f"{spec.classifier}.bias"]
    np.testing.assert_allclose(again, opened.logits(shown), atol=1e-5)
    opened.close()
