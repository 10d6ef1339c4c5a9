"""Zoo models without training: a checkpoint of a name, a file or a hub folder, asked and with its classes named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo

import infer
from config.errors import ConfigError, WeightsError
from infer.member import parse as parse_member
from models import __main__ as command
from models import manifest, pretrained, registry
from models.card import read_card
from models.registry import TABLES
from models.weights.torch_files import imagenet_names


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is named for its architecture, and an empty cache folder."""
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "test_resnet.safetensors")
    return tmp_path / "test_resnet.safetensors"


def test_imagenets_names_are_timms() -> None:
    info = ImageNetInfo("imagenet-1k")
    names = json.loads((TABLES / "imagenet_1k.json").read_text(encoding="utf-8"))
    assert names == [info.index_to_description(i) for i in range(1000)]
    assert len(imagenet_names(21841)) == 21841
    assert imagenet_names(7) == []


def test_a_weights_file_answers_as_timms_network_does_with_imagenets_names(file: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    member = parse_member(f"{file}@torch")
    card = read_card(member.path)
    assert card.class_names[:2] == ("tench, Tinca tinca", "goldfish, Carassius auratus")
    assert len(set(card.class_names)) == 1000
    assert member.runtime == "torch"
    network = timm.create_model("test_resnet").eval()
    from safetensors.torch import load_file

    network.load_state_dict(load_file(file))
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=network))
    with torch.no_grad():
        expected = network(transform(Image.fromarray(image))[None]).softmax(1).numpy()
    with infer.load(file) as runner:
        found = runner.predict([image])
    assert int(found.probabilities.argmax()) == int(expected.argmax())


def test_the_checkpoint_is_made_once_and_anew_for_another_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = pretrained.checkpoint(str(file))
    written = (first / manifest.NAME).stat().st_mtime_ns
    assert pretrained.checkpoint(str(file)) == first
    assert (first / manifest.NAME).stat().st_mtime_ns == written
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), file)
    other = pretrained.checkpoint(str(file))
    assert other != first
    assert read_card(other).class_names == ("0", "1", "2")
    assert "no class names" in capsys.readouterr().err


def test_save_writes_a_checkpoint_with_the_names_that_are_given(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = file.with_name("other.safetensors")
    state = timm.create_model("test_resnet", num_classes=2).state_dict()
    save_file({f"module.{n}": t for n, t in state.items()}, other)
    names, out = file.with_name("names.txt"), file.with_name("out")
    names.write_text("cat\ndog\n")
    words = ["save", "test_resnet", str(out), "--weights", str(other), "--classes", str(names)]
    assert command.main(words) == 0
    said = capsys.readouterr().out
    assert "prefix module." in said
    assert f"wrote {out}" in said
    manifest.verify(out)
    assert read_card(out).class_names == ("cat", "dog")
    assert command.main(words) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_hub_folder_brings_its_architecture_its_names_and_its_preprocessing(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "flowers"
    folder.mkdir()
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "test_resnet",
        "label_names": ["rose", "lily"],
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "input_size": [3, 96, 96], "crop_pct": 0.9},
    }
    (folder / "config.json").write_text(json.dumps(config))
    card = read_card(pretrained.checkpoint(str(folder)))
    assert card.class_names == ("rose", "lily")
    assert (card.preprocessing.mean, card.preprocessing.size, card.preprocessing.crop_pct) == ((0.5, 0.5, 0.5), 96, 0.9)


def test_what_cannot_be_a_member_says_how_one_is_made(file: Path) -> None:
    unnamed = file.rename(file.with_name("mine.safetensors"))
    with pytest.raises(WeightsError, match="python -m models save MODEL OUT --weights"):
        pretrained.checkpoint(str(unnamed))
    with pytest.raises(WeightsError, match=r"did you mean .*resnet18"):
        pretrained.save("resnet188", file.with_name("out"))
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), file.with_name("test_vit.safetensors"))
    with pytest.raises(WeightsError, match="no classifier"):
        pretrained.checkpoint(str(file.with_name("test_vit.safetensors")))
    with pytest.raises(ConfigError, match="2 names"):
        pretrained.save("test_resnet", file.with_name("out"), str(unnamed), ["a", "b"])


def test_names_files_and_folders_are_told_from_artefacts(file: Path, tmp_path: Path) -> None:
    assert pretrained.is_source("convnext_base")
    assert pretrained.is_source("hf:timm/resnet18.a1_in1k")
    assert pretrained.is_source(str(file))
    checkpoint = pretrained.checkpoint(str(file))
    assert not pretrained.is_source(str(checkpoint))
    assert not pretrained.is_source(str(tmp_path))
    assert not pretrained.is_source("no_such_network")
    assert pretrained.stem("hf:timm/resnet18.a1_in1k") == "resnet18.a1_in1k"
    assert registry.get(read_card(checkpoint).model).arch == "test_resnet"


def test_convert_takes_a_weights_file(file: Path) -> None:
    from convert import source

    (one,) = source.read(file)
    assert one.stem == "test_resnet"
    assert one.folder == file.parent
    assert len(one.card.class_names) == 1000
