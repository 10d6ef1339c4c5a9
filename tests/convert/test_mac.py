"""ONNX Runtime's Core ML provider and compiled Core ML packages, as far as a machine without Core ML can tell."""

from __future__ import annotations

import shutil
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.errors import BackendUnavailable
from convert.onnx import export
from infer.runtimes import coreml
from infer.runtimes import onnx as predictor
from infer.runtimes.mil import package as mil_package
from tests.convert.networks import Network


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def file(vit: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export.write(vit.classifier, vit.card, tmp_path_factory.mktemp("onnx") / "vit.onnx")


def test_an_onnx_file_runs_on_the_cpu_of_a_mac(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Core ML, which is listed first there, would compute an fp32 file in fp16."""
    import onnxruntime

    listed = ["CoreMLExecutionProvider", "AzureExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    assert predictor.open(file).providers == ("CPUExecutionProvider",)


def test_core_ml_on_request_gets_fp32_programs_static_shapes_and_a_cache(
    vit: Network, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import onnxruntime

    seen: list[Any] = []
    opened = onnxruntime.InferenceSession

    class OnTheCpu:
        """A session that says it has what it was asked for."""

        def __init__(self, path: str, options: Any, providers: list[Any]):
            seen.extend(providers)
            self._session = opened(path, options, providers=["CPUExecutionProvider"])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

        def get_providers(self) -> list[str]:
            return [name for name, _ in seen]

        def run(self, names: list[str], feeds: dict[str, Any]) -> Any:
            assert {len(array) for array in feeds.values()} == {16}, "of one size, whatever the number of images"
            return self._session.run(names, feeds)

    plain = predictor.open(file)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CoreMLExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", OnTheCpu)
    one = predictor.open(file, ("coreml",))
    ((name, options),) = seen
    assert name == "CoreMLExecutionProvider"
    cache = str(tmp_path / "cache" / "onnx_coreml")
    assert options == {"ModelFormat": "MLProgram", "RequireStaticInputShapes": "1", "ModelCacheDirectory": cache}
    for count in (1, 16, 19):
        images = np.resize(vit.images, (count, *vit.images.shape[1:]))
        np.testing.assert_allclose(one.logits(images), plain.logits(images), atol=1e-5)


class CoreMLTools:
    """What is used of coremltools on a Mac, with the calls that it got."""

    broken: str = ""

    def __init__(self, folder: Path, classes: int):
        self.compiled: list[str] = []
        self.loaded: list[tuple[str, str]] = []
        self.calls: list[int] = []
        self.ComputeUnit = {"ALL": "ALL", "CPU_ONLY": "CPU_ONLY"}
        self.models = types.SimpleNamespace(MLModel=self.ml_model, CompiledMLModel=self.opened)
        self._folder, self._classes = folder / "coreml", classes

    def ml_model(self, path: str, compute_units: str) -> Any:
        self.compiled.append(path)
        place = self._folder / f"{len(self.compiled)}.mlmodelc"
        place.mkdir(parents=True)
        (place / "model.mil").write_text("compiled")
        proxy = None if self.broken else object()
        error = RuntimeError(self.broken) if self.broken else None
        return types.SimpleNamespace(
            __proxy__=proxy, _framework_error=error, get_compiled_model_path=lambda: str(place)
        )

    def opened(self, path: str, compute_units: str) -> Any:
        assert (Path(path) / "model.mil").read_text() == "compiled"
        self.loaded.append((path, compute_units))
        return types.SimpleNamespace(predict=self.predict)

    def predict(self, data: Any) -> Any:
        given = data if isinstance(data, list) else [data]
        self.calls.append(len(given))
        answers = [{"logits": np.full((1, self._classes), float(np.asarray(d["image"]).sum()))} for d in given]
        return answers if isinstance(data, list) else answers[0]


@pytest.fixture
def tools(vit: Network, vit_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CoreMLTools:
    found = CoreMLTools(tmp_path, len(vit.card.class_names))
    package = mil_package.read(vit_package)
    monkeypatch.setattr(coreml.sys, "platform", "darwin")
    monkeypatch.setattr(mil_package, "read", lambda _: package)
    monkeypatch.setattr(mil_package, "coremltools", lambda: found)
    return found


def test_a_package_is_compiled_once_for_its_content(vit_package: Path, tools: CoreMLTools, tmp_path: Path) -> None:
    for units in ("ALL", "CPU_ONLY"):
        coreml.open(vit_package, units)  # type: ignore[arg-type]
    assert len(tools.compiled) == 1
    assert [units for _, units in tools.loaded] == ["ALL", "CPU_ONLY"]
    place = Path(tools.loaded[0][0])
    assert place.parent == tmp_path / "cache" / "coreml"
    assert place.suffix == ".mlmodelc", "Core ML goes by the name"
    assert list(place.parent.iterdir()) == [place], "nothing half written stays"
    other = Path(shutil.copytree(vit_package, tmp_path / "other.mlpackage"))
    coreml.open(other)
    assert len(tools.compiled) == 1, "the same content under another name"
    (next(other.rglob("weight.bin"))).write_bytes(b"other")
    coreml.open(other)
    assert len(tools.compiled) == 2


def test_a_batch_is_one_call_of_core_ml(vit: Network, vit_package: Path, tools: CoreMLTools) -> None:
    opened = coreml.open(vit_package)
    logits = opened.logits(vit.images)
    assert tools.calls == [len(vit.images)]
    np.testing.assert_array_equal(logits[:, 0], vit.images.astype(np.float32).sum(axis=(1, 2, 3)))
    assert opened.logits(vit.images[:0]).shape == (0, logits.shape[1])


def test_a_package_that_core_ml_does_not_load_is_an_error_at_once(vit_package: Path, tools: CoreMLTools) -> None:
    tools.broken = "Error in declaring network"
    with pytest.raises(BackendUnavailable, match=r"Core ML cannot load it \(Error in declaring network\)"):
        coreml.open(vit_package)
    assert not tools.loaded


def test_a_compiled_model_that_does_not_load_is_compiled_again_the_next_time(
    vit_package: Path, tools: CoreMLTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(path: str, compute_units: str) -> Any:
        raise RuntimeError("Unable to load model")

    with monkeypatch.context() as patch:
        patch.setattr(tools.models, "CompiledMLModel", damaged)
        with pytest.raises(BackendUnavailable, match=r"on ALL \(Unable to load model\)"):
            coreml.open(vit_package)
    coreml.open(vit_package)
    assert len(tools.compiled) == 2
