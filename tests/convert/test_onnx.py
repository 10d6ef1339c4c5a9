"""What an ONNX file says of itself and how it is opened. Its numbers are `test_families`'s."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import onnx as onnx_library
import pytest

from config.errors import BackendUnavailable, CheckpointError, ConvertError, WeightsError
from convert.onnx import export
from infer.runtimes import onnx as predictor
from tests.convert.networks import Network, build


@pytest.fixture(scope="module")
def file(vit: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export.write(vit.classifier, vit.card, tmp_path_factory.mktemp("onnx") / "vit.onnx")


def test_the_file_is_whole_in_itself(file: Path) -> None:
    assert [p.name for p in file.parent.iterdir()] == ["vit.onnx"]
    model = onnx_library.load(file)
    onnx_library.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version >= 18
    (images,), (logits,) = model.graph.input, model.graph.output
    assert images.type.tensor_type.elem_type == onnx_library.TensorProto.UINT8
    assert [d.dim_value for d in images.type.tensor_type.shape.dim] == [0, 32, 32, 3]
    assert logits.type.tensor_type.elem_type == onnx_library.TensorProto.FLOAT


@pytest.mark.parametrize(("opset", "ir_version"), [(17, 8), (18, 8), (20, 9)])
def test_older_runtimes_can_read_it(opset: int, ir_version: int, vit: Network, tmp_path: Path) -> None:
    path = export.write(vit.classifier, vit.card, tmp_path / "x.onnx", opset=opset)
    model = onnx_library.load(path)
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (ir_version, [("", opset)])
    np.testing.assert_allclose(predictor.open(path).logits(vit.images), vit.single, atol=5 * vit.floor)


def test_an_int8_file_imports_only_what_it_uses(vit: Network, tmp_path: Path) -> None:
    path = export.write(vit.classifier, vit.card, tmp_path / "x.onnx", "int8", calibration=[(vit.images,)])
    model = onnx_library.load(path)
    assert model.ir_version <= 9
    assert {o.domain for o in model.opset_import} == {n.domain for n in model.graph.node}


def test_an_opset_that_the_network_cannot_take_is_refused(tmp_path: Path) -> None:
    network = build("convnext")
    with pytest.raises(ConvertError, match="--opset 18"):
        export.write(network.classifier, network.card, tmp_path / "x.onnx", opset=17)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def old_runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with onnxruntime 1.16.3."""
    folder = tmp_path_factory.mktemp("old")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "onnxruntime==1.16.3", "numpy<2"], check=True)
    return python


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="onnxruntime 1.16 has wheels up to Python 3.11")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_onnxruntime_1_16_gives_the_same_top_1(precision: str, vit: Network, tmp_path: Path, old_runtime: Path) -> None:
    path = export.write(vit.classifier, vit.card, tmp_path / "x.onnx", precision, calibration=[(vit.images,)])
    np.save(tmp_path / "images.npy", vit.images)
    program = (
        "import numpy, onnxruntime; assert onnxruntime.__version__ == '1.16.3'; "
        "run = onnxruntime.InferenceSession('x.onnx', providers=['CPUExecutionProvider']).run; "
        "numpy.save('logits.npy', run(['logits'], {'images': numpy.load('images.npy')})[0])"
    )
    subprocess.run([old_runtime, "-c", program], cwd=tmp_path, check=True)
    logits, today = np.load(tmp_path / "logits.npy"), predictor.open(path).logits(vit.images)
    if precision == "fp32":
        np.testing.assert_allclose(logits, vit.single, atol=5 * vit.floor)
    np.testing.assert_array_equal(logits.argmax(1), today.argmax(1))


def test_nothing_of_this_machine_is_in_it(file: Path) -> None:
    assert b"site-packages" not in file.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in file.read_bytes()


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_any_number_of_images_gives_torchs_logits(count: int, vit: Network, file: Path) -> None:
    opened = predictor.open(file)
    assert opened.card == vit.card
    logits = opened.logits(vit.images[:count])
    assert logits.shape == (count, len(vit.card.class_names))
    np.testing.assert_allclose(logits, vit.single[:count], atol=5 * vit.floor)


def test_images_of_another_kind_are_refused(vit: Network, file: Path) -> None:
    with pytest.raises(ValueError, match="uint8"):
        predictor.open(file).logits(vit.images.astype(np.float32))


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such"):
        predictor.open(tmp_path / "absent.onnx")


@pytest.mark.parametrize("kept", [0, 1000, 100_000])
def test_a_cut_file_is_refused(kept: int, file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"cut\.onnx"):
        predictor.open(cut)


def test_a_file_without_a_card_is_refused(file: Path, tmp_path: Path) -> None:
    model = onnx_library.load(file)
    model.ClearField("metadata_props")
    onnx_library.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(WeightsError, match="no Tandem card"):
        predictor.open(tmp_path / "foreign.onnx")


def test_an_absent_provider_is_named(file: Path) -> None:
    with pytest.raises(BackendUnavailable, match="NoSuchProvider"):
        predictor.open(file, providers=("NoSuchProvider",))


def test_cuda_with_the_wheel_for_the_cpu_names_the_other_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        BackendUnavailable, match=r"has no CUDAExecutionProvider here; .*uninstall onnxruntime, .*onnx_gpu"
    ):
        predictor.open(file, providers=("cuda",))


class Fallen:
    """ONNX Runtime built with CUDA whose libraries do not load: providers are listed, the session has the CPU."""

    def __init__(self, patch: pytest.MonkeyPatch, file: Path):
        import onnxruntime

        self.asked: list[object] = []
        real = onnxruntime.InferenceSession
        listed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

        def opened(path: str, options: object, providers: list[object]) -> object:
            self.asked = providers
            return real(path, options, providers=["CPUExecutionProvider"])

        patch.setattr(onnxruntime, "get_available_providers", lambda: listed)
        patch.setattr(onnxruntime, "InferenceSession", opened)
        patch.setattr(onnxruntime, "preload_dlls", lambda: self.asked.append("preloaded"))


def test_cuda_that_does_not_load_is_no_silent_cpu(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fallen = Fallen(monkeypatch, file)
    with pytest.warns(UserWarning, match=r"lists CUDAExecutionProvider.*runs on CPUExecutionProvider.*onnxruntime-gpu"):
        opened = predictor.open(file)
    assert opened.providers == ("CPUExecutionProvider",)
    assert fallen.asked == [("CUDAExecutionProvider", {"device_id": 0, "use_tf32": 0}), "CPUExecutionProvider"]
    with pytest.raises(BackendUnavailable, match=r"lists CUDAExecutionProvider, which does not load here.*onnx_gpu"):
        predictor.open(file, providers=("cuda",))
    assert predictor.available(file) == ("CPUExecutionProvider",), "a conversion is verified on what there is"


def test_tensorrt_is_asked_for_with_its_profile_and_each_rank_has_its_gpu(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fallen = Fallen(monkeypatch, file)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(BackendUnavailable, match="lists TensorrtExecutionProvider, CUDAExecutionProvider"):
        predictor.open(file, providers=("tensorrt", "cuda"))
    (tensorrt, options), cuda = fallen.asked
    assert (tensorrt, cuda[0], cuda[1]["device_id"]) == ("TensorrtExecutionProvider", "CUDAExecutionProvider", 3)
    assert options["device_id"] == 3
    assert options["trt_profile_min_shapes"] == "images:1x32x32x3"
    assert options["trt_profile_max_shapes"] == options["trt_profile_opt_shapes"] == "images:64x32x32x3"
    assert options["trt_engine_cache_enable"] and Path(options["trt_engine_cache_path"]).is_dir()


def test_writing_a_file_prints_nothing_of_the_exporter(
    vit: Network, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export.write(vit.classifier, vit.card, tmp_path / "x.onnx")
    assert capfd.readouterr() == ("", "")


def test_the_file_names_the_providers_that_ran_it(file: Path) -> None:
    metadata = {p.key: p.value for p in onnx_library.load(file).metadata_props}
    assert set(json.loads(metadata[export.TRIED_KEY])) == set(predictor.available(file))


def test_floats_between_zero_and_one_are_an_option(vit: Network, tmp_path: Path) -> None:
    path = export.write(vit.classifier, vit.card, tmp_path / "x.onnx", float_input=True)
    (images,) = onnx_library.load(path).graph.input
    assert images.type.tensor_type.elem_type == onnx_library.TensorProto.FLOAT
    assert [d.dim_value for d in images.type.tensor_type.shape.dim] == [0, 3, 32, 32]
    np.testing.assert_allclose(predictor.open(path).logits(vit.images), vit.single, atol=5 * vit.floor)


def test_weights_lie_beside_it_where_one_message_cannot_hold_them(
    vit: Network, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = export.write(vit.classifier, vit.card, tmp_path / "x.onnx")
    assert path.read_bytes() == file.read_bytes()
    monkeypatch.setattr(export, "MOST_BYTES", 2**24 + 100_000)
    for _ in range(2):
        export.write(vit.classifier, vit.card, path, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.onnx", "x.onnx.data"]
    assert path.with_name("x.onnx.data").stat().st_mode == path.stat().st_mode, "others may read it too"
    assert path.stat().st_size < file.stat().st_size / 5
    np.testing.assert_array_equal(predictor.open(path).logits(vit.images), predictor.open(file).logits(vit.images))
    monkeypatch.undo()
    export.write(vit.classifier, vit.card, path, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.onnx"]
