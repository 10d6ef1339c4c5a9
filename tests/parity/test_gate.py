"""The gate itself: what the registry gains is held to timm unasked, and the weights it is tried with hide no fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from backends.torch import model as torch_model
from models import registry
from ports.common import layers
from tests.parity import drawn, harness, kinds

SIZE = {"convnext": 64}
FAULT = 0.01


def test_an_architecture_of_a_new_kind_is_tested_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    with_one_more(
        monkeypatch, "convnext", "convnext_atto", {"use_grn": True, "conv_mlp": False, "stem_type": "overlap"}
    )
    assert "convnext_atto_added" in kinds.representatives("convnext")
    harness.check_logits(kinds.tiny("convnext_atto", monkeypatch, SIZE["convnext"]))
    monkeypatch.setitem(layers.ACTIVATIONS, "gelu", layers.ACTIVATIONS["gelu_tanh"])
    with pytest.raises(AssertionError, match="logits differ"):
        harness.check_logits(kinds.tiny("convnext_atto", monkeypatch, SIZE["convnext"]))


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_one_percent_on_any_one_parameter_is_seen(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 torch, so that nothing but the fault moves the logits."""
    spec = kinds.tiny(kinds.ORDINARY[family], monkeypatch, SIZE.get(family))
    model = drawn.torch_network(spec, drawn.weights(spec)).eval().double()
    pixels = torch.from_numpy(drawn.normalised(spec, drawn.images(spec, 2))).permute(0, 3, 1, 2).double()
    rng = np.random.default_rng(0)
    unseen = {}
    with torch.no_grad():
        want = model(pixels)
        for name, tensor in torch_model.canonical_tensors(model).items():
            kept = tensor.clone()
            tensor *= 1 + FAULT * torch.from_numpy(rng.standard_normal(tensor.shape))
            seen = float((model(pixels) - want).abs().max() / want.std())
            if seen <= harness.LOGITS:
                unseen[name] = seen
            tensor.copy_(kept)
    assert not unseen


def with_one_more(patch: pytest.MonkeyPatch, family: str, like: str, args: dict[str, Any]) -> None:
    """The registry with `LIKE_added`, which differs from `like` in `args`."""
    table = registry._table
    row = table(family)[like]
    more = {**table(family), f"{like}_added": {**row, "args": {**row["args"], **args}}}
    patch.setattr(registry, "_table", lambda name: more if name == family else table(name))
    patch.setattr(registry, "_index", lambda: dict.fromkeys(more, family))
