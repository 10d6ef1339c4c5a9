"""mlx-image's models as `mlxim/NAME`: torchvision's numbers, the canonical door, and an engine's whole session."""

from __future__ import annotations

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
import torchvision
from mlx.utils import tree_flatten

import ports
from backends.contract import Batch, SessionConfig, StepHyperparams
from backends.mlx import session
from backends.torch import model as torch_model
from config import load
from config.errors import BackendUnavailable, ConfigError
from models import record_mlx, registry
from models.weights import loading
from ports import zoo
from ports.common import layers
from training.run import train_run

NAMES = [f"{arch}.{tag}" if tag else arch for arch in registry.members(registry.ZOO) for tag in registry.tags(arch)]
# mlx-image's weights are torchvision's; these have its names as well, but for MLX's `layers` of a Sequential.
TORCHVISION = {
    "mlxim/resnet18": "resnet18",
    "mlxim/mobilenet_v2": "mobilenet_v2",
    "mlxim/mobilenet_v3_small": "mobilenet_v3_small",
    "mlxim/efficientnet_b0": "efficientnet_b0",
}
# One of each of the other kinds, at an image size that its network takes.
OTHERS = {
    "mlxim/regnet_y_400mf": 64,
    "mlxim/swin_tiny_patch4_window7_224": 64,
    "mlxim/swin_v2_tiny_patch4_window8_256": 64,
    "mlxim/vit_small_patch16_224.dino": 224,
}


def drawn(shapes: dict[str, tuple[int, ...]]) -> loading.Weights:
    rng = np.random.default_rng(0)
    values: loading.Weights = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape)
        kind, many = name.rpartition(".")[2], len(shape) > 1
        scaled = noise / np.sqrt(np.prod(shape[1:])) if many else 0.1 * noise + (kind in ("weight", "running_var"))
        values[name] = np.abs(scaled).astype(np.float32) if kind == "running_var" else scaled.astype(np.float32)
    return values


def canonical_shapes(model: object) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in layers.canonical(model).items()}  # type: ignore[arg-type]


def test_the_tables_are_those_of_the_installed_mlx_image_and_of_the_ports() -> None:
    assert registry._table(registry.ZOO) == record_mlx.zoo_rows()
    assert registry._table("mlx_refused") == record_mlx.refusals()
    assert {name.removeprefix(zoo.PREFIX) for name in NAMES} == set(zoo.entries())


@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_built_with_its_classifier_and_only_real_parameters(name: str) -> None:
    spec = registry.get(name, num_classes=7)
    homes = layers.places(ports.create(spec))
    assert homes[f"{spec.classifier}.weight"][0].weight.shape == (7, spec.args["features"])
    assert not any(path.endswith(zoo.CONSTANTS) for path in homes)
    # `models.weights.loading` turns mlx-image's files by this rule.
    for path, (module, key) in homes.items():
        assert (module[key].ndim == 4) == (isinstance(module, layers.Conv2d) and key == "weight"), path
    features = layers.places(ports.create(registry.get(name, num_classes=0)))
    assert homes.keys() - features.keys() == {f"{spec.classifier}.{kind}" for kind in ("weight", "bias")}


@pytest.mark.parametrize("name", TORCHVISION)
def test_logits_are_torchvisions(name: str) -> None:
    spec = registry.get(name, image_size=64, num_classes=7)
    theirs = torchvision.models.get_model(TORCHVISION[name], num_classes=7).eval()
    model = ports.create(spec)
    values = drawn(canonical_shapes(model))
    theirs.load_state_dict({n.replace(".layers.", "."): torch.from_numpy(v) for n, v in values.items()}, strict=False)
    layers.load_canonical(model, values)
    x = np.random.default_rng(1).standard_normal((2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        want = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    got = np.array(model.eval()(mx.array(x)))
    assert np.abs(got - want).max() <= 1e-5 * want.std()


@pytest.mark.parametrize("name", OTHERS)
def test_logits_are_those_of_mlx_image_itself(name: str) -> None:
    size = OTHERS[name]
    spec = registry.get(name, image_size=size)
    theirs = zoo.entries()[spec.name.removeprefix(zoo.PREFIX)][0]()
    classes = dict(tree_flatten(theirs.parameters()))[f"{spec.classifier}.bias"].shape[0]
    model = ports.create(registry.get(name, image_size=size, num_classes=classes))
    values = drawn(canonical_shapes(model))
    layers.load_canonical(model, values)
    theirs.load_weights(
        [(n, mx.array(layers.mlx_layout(*layers.places(model)[n], v))) for n, v in values.items()], False
    )
    x = mx.array(np.random.default_rng(1).standard_normal((1, size, size, 3)).astype(np.float32))
    got, want = np.array(model.eval()(x)), np.array(theirs.eval()(x))
    assert np.abs(got - want).max() <= 1e-5 * want.std()


def test_a_file_of_mlx_image_is_loaded_and_fine_tuned(tmp_path: Path) -> None:
    spec = registry.get("mlxim/resnet18", image_size=32, num_classes=3, drop_rate=0.0)
    whole = ports.create(registry.get("mlxim/resnet18"))
    values = drawn(canonical_shapes(whole))
    layers.load_canonical(whole, values)
    mx.save_safetensors(str(tmp_path / "mlxim.safetensors"), dict(tree_flatten(whole.parameters())))
    found = loading.resolve(spec, tmp_path / "mlxim.safetensors")
    assert found is not None
    fitted, notes = loading.fit(found.weights, spec)
    assert "fc freshly drawn for 3" in notes[0]
    np.testing.assert_array_equal(fitted["conv1.weight"], values["conv1.weight"])
    engine = session.open(spec, fitted, SessionConfig(compile=False))
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    batch = Batch(images, np.eye(3, dtype=np.float32)[[0, 1, 2, 0]], np.ones(4, np.float32))
    losses = [
        engine.read(engine.train_step(batch, None, StepHyperparams(1e-3, 0.0, 0.0, 1.0))).losses.mean()
        for _ in range(4)
    ]
    assert losses[-1] < losses[0]
    assert engine.state().weights["conv1.weight"].shape == (64, 3, 7, 7)


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("mlxim/resnet18", {"in_chans": 1}, "in_chans=1"),
        ("mlxim/resnet18", {"global_pool": "gem"}, "global_pool=gem"),
        ("mlxim/resnet18", {"drop_path_rate": 0.1}, "drop_path_rate=0.1"),
        ("mlxim/swin_tiny_patch4_window7_224", {"drop_rate": 0.1}, "drop_rate=0.1"),
        ("mlxim/vit_base_patch16_224", {"image_size": 160}, "image_size=160"),
    ],
)
def test_what_mlx_image_does_not_have_is_refused_by_name(name: str, options: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ports.create(registry.get(name, **options))


def test_stochastic_depth_and_dropout_follow_the_settings() -> None:
    model = ports.create(registry.get("mlxim/efficientnet_b0", drop_path_rate=0.1, drop_rate=0.3))
    rates = [m._rate for m in model.modules() if isinstance(m, layers.DropPath)]
    assert max(rates) == pytest.approx(0.1)
    assert min(rates) == 0
    assert len(set(rates)) == len(rates)
    assert model.classifier.layers[0]._p_1 == pytest.approx(0.7)


def test_torch_refuses_them_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"train it with train_mlx\.py"):
        torch_model.build(registry.get("mlxim/resnet18"))


@pytest.mark.parametrize(("engine", "name"), [("torch", "mlxim/resnet18"), ("mlx", "mixnet_s")])
def test_a_run_on_the_wrong_engine_is_refused_before_anything_is_written(engine, name, tmp_path: Path) -> None:
    words = ["--data.root", str(tmp_path / "absent"), "--out", str(tmp_path / "runs"), "--model", name]
    with pytest.raises(ConfigError, match=name):
        train_run.run_all(engine, load.parse(words, prog="test"), lambda: False)
    assert not (tmp_path / "runs").exists()


def test_without_mlx_image_the_line_names_the_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxim.model._registry", None)
    with pytest.raises(BackendUnavailable, match="pip install --no-deps mlx-image"):
        ports.create(registry.get("mlxim/resnet18"))
