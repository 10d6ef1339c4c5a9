"""`python -m convert` from a checkpoint folder to artefacts, and its verdict on them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_library
import pytest
import torch

import convert
from backends.torch import model as torch_model
from config.errors import ConfigError, ConvertError
from convert import __main__ as command
from convert import export, place, source
from convert.graph import torch_network
from convert.verification import pictures as real_images
from convert.verification import report, verify
from infer import runtimes
from infer.runtimes.mil import evaluate
from models import manifest, registry
from models.card import CARD_KEY, Card
from models.weights import loading

SPEC = registry.get("convnext_atto", num_classes=10, image_size=32)
CARD = Card("convnext_atto", tuple("0123456789"), SPEC.preprocessing, dict(SPEC.options), "torch")


def fresh(seed: int) -> dict[str, np.ndarray]:
    torch.manual_seed(seed)
    return torch_model.to_arrays(torch_model.canonical_tensors(torch_model.build(SPEC)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "fold_3" / "best"
    folder.mkdir(parents=True)
    for seed, name in enumerate(("model.safetensors", "ema.safetensors")):
        loading.write(folder / name, fresh(seed), {CARD_KEY: CARD.to_json()})
    manifest.write(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(all_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for path in sorted((all_digits / "test").iterdir())[:20]:
        shutil.copy(path, folder / path.name)
    return folder


def test_both_formats_verified_on_files(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(checkpoint), "--to", "onnx", "coreml", "--out", str(tmp_path), "--verify", str(pictures)]
    assert command.main(arguments) == 0, capsys.readouterr().err
    files = {"fold_3_best.onnx", "fold_3_best.mlpackage", "verify.json", "verify.md"}
    assert {p.name for p in tmp_path.iterdir()} == files
    rows = json.loads((tmp_path / "verify.json").read_text())
    assert {r["artefact"]: (r["top1_agreement"], r["images"], r["faults"]) for r in rows} == {
        "fold_3_best.onnx": (1.0, 20, []),
        "fold_3_best.mlpackage": (1.0, 20, []),
    }
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    averaged = torch_network.once(torch_network.classifier(fresh(1), CARD), image)
    answer = runtimes.open(tmp_path / "fold_3_best.onnx").logits(image)
    np.testing.assert_allclose(answer, averaged, atol=1e-5, err_msg="not the EMA weights")

    assert command.main(arguments) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_package_that_cannot_be_executed_costs_no_other_comparison(
    checkpoint: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delitem(evaluate.OPERATIONS, "gelu")
    arguments = [str(checkpoint), "--to", "coreml", "onnx", "--out", str(tmp_path), "--verify", str(pictures)]
    assert command.main(arguments) == 4
    said, error = capsys.readouterr()
    assert "fold_3_best.mlpackage on mil_reference" in one_line(error)
    assert "'gelu'" in error
    assert "fold_3_best.onnx on onnx CPU" in said
    package, file = json.loads((tmp_path / "verify.json").read_text())
    assert (file["artefact"], file["top1_agreement"], file["faults"]) == ("fold_3_best.onnx", 1.0, [])
    assert (package["artefact"], package["top1_agreement"]) == ("fold_3_best.mlpackage", None)
    assert "'gelu'" in (tmp_path / "verify.md").read_text()


def test_another_model_fails_the_verification(
    checkpoint: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reference, another = torch_network.reference, torch_network.classifier(fresh(2), CARD)
    monkeypatch.setattr(torch_network, "reference", lambda _, batches: reference(another, batches))
    arguments = [str(checkpoint), "--to", "onnx", "--out", str(tmp_path), "--verify", str(pictures)]
    assert command.main(arguments) == 4
    assert "top-1 agreement" in one_line(capsys.readouterr().err)
    (row,) = json.loads((tmp_path / "verify.json").read_text())
    assert row["faults"]


@pytest.mark.parametrize(
    ("noise", "precision", "faults"),
    [(1e-6, "fp32", 0), (1e-4, "fp32", 1), (1e-4, "fp16", 0), (3.0, "fp16", 3), (np.nan, "fp16", 3)],
)
def test_limits_go_by_precision(noise: float, precision: str, faults: int) -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(500, 10)).astype(np.float32)
    logits = reference + noise * rng.uniform(-1, 1, reference.shape).astype(np.float32)
    labels = rng.integers(0, 10, 500)
    said = verify.Measured("onnx", logits, None)
    compared = verify.measure(verify.Artefact(Path("x"), precision), said, reference, 1e-6, labels)
    assert len(compared.faults) == faults


@pytest.mark.parametrize(
    ("precision", "margin", "fault"),
    [
        ("fp16", 0.01, ""),  # probabilities 1% apart
        ("fp16", 0.05, "top-1 agreement 99.8"),
        ("int8", 0.05, ""),
        ("int8", 0.3, ""),  # one clear flip of 500 is within the 99%
        ("fp32", 0.01, "top-1 agreement 99.8"),
    ],
)
def test_a_flip_of_a_tie_is_no_fault(precision: str, margin: float, fault: str) -> None:
    """The first image's first two classes are `margin` apart, and the artefact has them the other way round."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 500)
    reference = 8 * np.eye(10, dtype=np.float32)[labels]
    reference[0] = np.linspace(-1, -9, 10)
    reference[0, labels[0]], reference[0, (labels[0] + 1) % 10] = 5 + margin, 5
    logits = reference.copy()
    logits[0, labels[0]], logits[0, (labels[0] + 1) % 10] = 5, 5 + margin
    said = verify.Measured("onnx", logits, None)
    compared = verify.measure(verify.Artefact(Path("x"), precision), said, reference, 1e-6, labels)
    assert "; ".join(compared.faults).count("top-1") == bool(fault)
    assert fault in "; ".join(compared.faults)
    assert compared.top1_agreement == compared.accuracy == 0.998, "what is reported counts every image"
    assert compared.accuracy_checkpoint == 1
    assert compared.tied_flips == ((margin < 0.02 and precision == "fp16") or (margin < 0.2 and precision == "int8"))
    assert ("1 of 1 flips are ties" in report.line(compared)) == bool(compared.tied_flips)


def test_right_answers_lost_are_a_fault_where_agreement_and_log_loss_are_not() -> None:
    """Ten of a thousand flip, all from right to wrong, each by a small margin beyond that of a tie."""
    reference = np.tile(np.float32([2, 1.75, -9]), (1000, 1))
    labels = np.zeros(1000, np.int64)
    for flips, faults in ((9, 0), (11, 2)):
        logits = reference.copy()
        logits[:flips, :2] = logits[:flips, 1::-1]
        said = verify.Measured("onnx", logits, None)
        compared = verify.measure(verify.Artefact(Path("x"), "int8"), said, reference, 1e-6, labels)
        assert len(compared.faults) == faults, compared.faults
    assert "1.10 points of accuracy lost" in compared.faults[1]
    unlabelled = verify.measure(verify.Artefact(Path("x"), "int8"), said, reference, 1e-6, None)
    assert unlabelled.accuracy is None and "accuracy" not in "".join(unlabelled.faults)


def test_the_measures_are_those_of_scikit_learn_and_scipy() -> None:
    from scipy.special import softmax
    from scipy.stats import entropy
    from sklearn.metrics import accuracy_score, log_loss

    rng = np.random.default_rng(0)
    reference = rng.normal(size=(200, 4)).astype(np.float32)
    logits = reference + rng.normal(scale=0.3, size=reference.shape).astype(np.float32)
    labels = rng.integers(0, 4, 200)
    said = verify.Measured("onnx", logits, None)
    compared = verify.measure(verify.Artefact(Path("x"), "fp16"), said, reference, 1e-6, labels)
    p, q = (softmax(x.astype(np.float64), axis=1) for x in (reference, logits))
    assert compared.log_loss == pytest.approx(log_loss(labels, q))
    assert compared.log_loss_checkpoint == pytest.approx(log_loss(labels, p))
    assert compared.kl_divergence == pytest.approx(entropy(p, q, axis=1).mean())
    assert compared.top1_agreement == accuracy_score(reference.argmax(1), logits.argmax(1))
    assert compared.accuracy == accuracy_score(labels, logits.argmax(1))
    assert compared.accuracy_checkpoint == accuracy_score(labels, reference.argmax(1))


def test_labels_are_used_where_the_images_have_them(digits: Path, checkpoint: Path) -> None:
    table = real_images.table(digits, CARD)
    assert (table.labels >= 0).all()


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    assert text.startswith("error: ")
    return text


@pytest.mark.parametrize("kind", ["absent", "empty", "run", "damaged", "images"])
def test_what_is_no_checkpoint_is_one_line(
    kind: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "in" / "best"
    arguments: list[str] = []
    if kind == "empty":
        path.mkdir(parents=True)
    elif kind == "run":
        path = checkpoint.parents[1]
    elif kind in ("damaged", "images"):
        shutil.copytree(checkpoint, path)
    if kind == "damaged":
        data = bytearray((path / "ema.safetensors").read_bytes())
        data[-1] ^= 1
        (path / "ema.safetensors").write_bytes(data)
    if kind == "images":
        (tmp_path / "none").mkdir()
        arguments = ["--verify", str(tmp_path / "none")]
    out = tmp_path / "out"
    assert command.main([str(path), "--to", "onnx", "--out", str(out), *arguments]) == 1
    error = one_line(capsys.readouterr().err)
    named = {"run": "fold_3", "damaged": "ema.safetensors", "images": "none"}.get(kind, str(path))
    assert named in error
    assert not out.exists()


def test_an_unknown_precision_is_a_wrong_command_line(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main([str(checkpoint), "--to", "onnx", "--precision", "fp12"])
    assert stopped.value.code == 2
    assert "fp16" in capsys.readouterr().err


def test_a_full_disk_leaves_what_was_there(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: Any, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    old = tmp_path / "fold_3_best.onnx"
    old.write_text("the old one")
    monkeypatch.setattr(onnx_library, "save_model", full)
    arguments = [str(checkpoint), "--to", "onnx", "--out", str(tmp_path), "--overwrite"]
    assert command.main(arguments) == 1
    assert "No space left" in one_line(capsys.readouterr().err)
    assert [p.name for p in tmp_path.iterdir()] == [old.name]
    assert old.read_text() == "the old one"


def test_a_folder_that_finds_no_space_says_so_in_one_line(tmp_path: Path) -> None:
    """As `shutil.copytree` tells it, which coremltools puts packages in their place with."""
    told = f"[Errno 28] {os.strerror(errno.ENOSPC)}: 'a' -> 'b'"
    with (
        pytest.raises(ConvertError, match="free some space"),
        place.atomic_artefact(tmp_path / "x.mlpackage", False) as path,
    ):
        path.mkdir()
        raise shutil.Error([("a", "b", told)])
    assert not list(tmp_path.iterdir())


def test_overwrite_replaces_a_package_as_a_whole(checkpoint: Path, tmp_path: Path) -> None:
    old = tmp_path / "fold_3_best.mlpackage"
    (old / "left").mkdir(parents=True)
    assert command.main([str(checkpoint), "--to", "coreml", "--out", str(tmp_path), "--overwrite"]) == 0
    assert not (old / "left").exists()
    assert [p.name for p in tmp_path.iterdir()] == [old.name]
    assert runtimes.open(old, "mil_reference").card == CARD


def test_a_missing_framework_names_the_install(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(convert, "installed", lambda module: module != "coremltools")
    assert command.main([str(checkpoint), "--to", "onnx", "coreml", "--out", str(tmp_path)]) == 1
    assert 'pip install -e ".[convert]"' in one_line(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_artefacts_are_written_beside_the_checkpoint_under_its_name(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = source.read(checkpoint)
    (job,) = export.names(found, [("coreml", "fp16")], None)
    assert job.out == checkpoint.parent / "fold_3_best_fp16.mlpackage"
    monkeypatch.chdir(checkpoint)
    (found,) = source.read(Path())
    (job,) = export.names(found, [("onnx", "fp32")], None)
    assert job.out.resolve() == checkpoint.parent / "fold_3_best.onnx"


def test_python_writes_what_the_command_writes(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    found = convert.convert(checkpoint, ["onnx"], ["fp32", "fp16"], out=tmp_path / "a", verify=str(pictures))
    assert (
        command.main([str(checkpoint), "--to", "onnx", "--precision", "fp32", "fp16", "--out", str(tmp_path / "b")])
        == 0
    )
    assert [path.name for path in found] == ["fold_3_best.onnx", "fold_3_best_fp16.onnx"]
    assert (tmp_path / "a" / "verify.json").is_file()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    for path in found:
        mine, theirs = (runtimes.open(tmp_path / place / path.name) for place in "ab")
        assert np.array_equal(mine.logits(pixels), theirs.logits(pixels))


@pytest.mark.parametrize(
    ("given", "error", "reason"),
    [
        ({"to": "onxx"}, ConfigError, "found onxx; there are onnx, coreml"),
        ({"to": []}, ConfigError, "found nothing"),
        ({"to": "onnx", "precision": "fp8"}, ConfigError, "found fp8"),
        ({"to": "onnx", "precision": "w8"}, ConfigError, "its precisions are"),
        ({"to": "onnx", "batch": [0]}, ConfigError, "at least one image"),
        ({"to": "onnx", "distil": "x"}, TypeError, "unknown option 'distil'; there are batch"),
    ],
)
def test_wrong_arguments_from_python_are_exceptions(given, error, reason, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(error, match=reason):
        convert.convert(checkpoint, out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
