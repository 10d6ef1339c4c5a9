"""How members run: torch's, MLX's and ONNX Runtime's options, and what each runtime refuses."""

import numpy as np
import pytest
import torch

import infer
from backends.torch import model as networks
from config.errors import BackendUnavailable, ConfigError
from convert.graph import torch_network
from convert.onnx import export as convert
from ensemble import ensemble_file
from ensemble.member import Member
from ensemble.options import RunOptions
from infer import runtimes
from infer.commands import members
from infer.member import ensemble_of
from infer.model_cache import ModelCache
from models import manifest, registry
from models.card import CARD_KEY, Card, Preprocessing
from models.weights import loading

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small torch checkpoint and its ONNX file."""
    folder = tmp_path_factory.mktemp("member") / "best"
    card = Card("test_resnet", ("ant", "bee", "cat"), Preprocessing(size=32), {"image_size": 32}, "torch")
    torch.manual_seed(0)

    arrays = networks.to_arrays(networks.canonical_tensors(networks.build(registry.of_card(card, "test"))))
    folder.mkdir()
    loading.write(folder / "model.safetensors", arrays, {CARD_KEY: card.to_json()})
    manifest.write(folder)
    convert.write(torch_network.classifier(arrays, card), card, folder.parent / "best.onnx")
    return folder, folder.parent / "best.onnx"


def test_torch_options_change_how_and_not_what(trained):
    folder, _ = trained
    plain = runtimes.open(folder, "torch").logits(IMAGES)
    last = runtimes.open(folder, "torch", device="cpu", channels_last=True)
    assert next(last._network.parameters()).is_contiguous(memory_format=torch.channels_last)
    assert np.allclose(last.logits(IMAGES), plain, atol=1e-5)
    half = runtimes.open(folder, "torch", precision="bf16").logits(IMAGES)
    assert 0 < np.abs(half - plain).max() < 0.05 * np.abs(plain).max()
    assert runtimes.open(folder, "torch").logits(IMAGES[:0]).shape == (0, 3)


def test_compiled_answers_are_eager_ones_and_few_shapes_are_compiled(trained, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda network, **_: lambda x: seen.append(x.shape) or network(x))
    compiled = runtimes.open(trained[0], "torch", compile=True)
    plain = runtimes.open(trained[0], "torch").logits(IMAGES)
    assert np.allclose(compiled.logits(IMAGES), plain, atol=1e-5) and seen == [(8, 3, 32, 32)]
    monkeypatch.setattr("backends.torch.compiling.shutil.which", lambda _name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BackendUnavailable, match=r"--compile: torch.compile needs a C\+\+ compiler"):
        runtimes.open(trained[0], "torch", compile=True, device="cpu")


def test_a_full_device_gets_fewer_images_at_a_time(trained, monkeypatch):
    predictor = runtimes.open(trained[0], "torch")
    plain = predictor.logits(IMAGES)
    forward = predictor._forward

    def scarce(pixels):
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(pixels)

    predictor._forward = scarce
    with pytest.warns(UserWarning, match="out of memory on cpu; goes on with"):
        assert np.allclose(predictor.logits(IMAGES), plain, atol=1e-5)
    assert predictor._chunk == 2


def test_io_binding_gives_the_same_answers(trained):
    predictor = runtimes.open(trained[1], "onnx", providers=("cpu",))
    assert predictor.providers == ("CPUExecutionProvider",)
    assert np.array_equal(predictor._bound({"images": IMAGES}, "cpu"), predictor.logits(IMAGES))


def test_options_reach_the_member_that_they_are_for(trained, monkeypatch):
    folder, file = trained
    given = []
    opening = runtimes.open
    monkeypatch.setattr(runtimes, "open", lambda path, runtime, **o: given.append(o) or opening(path, runtime, **o))
    both = members.with_overrides(ensemble_of([f"{folder}@torch", str(file)]), ["1:precision=bf16", "2:provider=cpu"])
    opened = ModelCache(both.members, RunOptions(device="cpu", precision="fp32"), "all")
    assert given == [{"device": "cpu", "precision": "bf16"}, {"providers": ("cpu",)}] and len(opened.cards) == 2
    opened.close()


def test_options_of_a_file_are_read_written_and_checked(trained, tmp_path):
    folder, _ = trained
    mine = Member(path=folder, runtime="torch", options=RunOptions(device="cpu", channels_last=True))
    ensemble_file.write(tmp_path / "e.yaml", ensemble_file.Ensemble(members=(mine,)))
    assert ensemble_file.read(tmp_path / "e.yaml").members[0].options == mine.options
    text = (tmp_path / "e.yaml").read_text()
    assert "merge" not in text and "adaptive" not in text
    (tmp_path / "e.yaml").write_text(text.replace("device:", "devcie:"))
    with pytest.raises(ConfigError, match=r"members.0.options.devcie: unknown key; did you mean device\?"):
        ensemble_file.read(tmp_path / "e.yaml")


@pytest.mark.parametrize(
    ("place", "options", "found"),
    [
        (0, {"device": "cuda:7"}, "--device cuda:7: torch .* has no such device here"),
        (0, {"device": "toaster"}, "--device toaster: torch .* has no such device here"),
        (1, {"provider": "cuda"}, "ONNX Runtime has no CUDAExecutionProvider here; it has"),
        (0, {"precision": "fp8"}, "options: precision: found 'fp8'; expected one of auto, fp32, tf32, bf16, fp16"),
        (0, {"devise": "cpu"}, "options: 'devise' is not known; there are device"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that is refused")
def test_what_is_not_there_is_one_line(trained, place, options, found):
    with pytest.raises((BackendUnavailable, ConfigError), match=found):
        infer.load(f"{trained[place]}{'@torch' if place == 0 else ''}", **options)


def test_mlx_takes_a_device(trained):
    plain = runtimes.open(trained[0], "torch").logits(IMAGES)
    assert np.allclose(runtimes.open(trained[0], "mlx", device="cpu").logits(IMAGES), plain, atol=1e-4)
    with pytest.raises(BackendUnavailable, match="--device tpu: MLX has no such device"):
        runtimes.open(trained[0], "mlx", device="tpu")


def test_members_of_every_runtime_answer_from_many_threads(trained):
    """MLX's arrays belong to one thread, so this fails where a member is called from another."""
    from concurrent.futures import ThreadPoolExecutor

    for text in (f"{trained[0]}@torch", f"{trained[0]}@mlx", str(trained[1])):
        with infer.load(text, views=["flip"]) as model, ThreadPoolExecutor(4) as pool:
            expected = model.predict(list(IMAGES)).probabilities
            for said in pool.map(lambda _n, model=model: model.predict(list(IMAGES)).probabilities, range(8)):
                assert np.array_equal(said, expected)
