"""Random and mutated bytes as every kind of file that comes from outside: an error of ours or an answer, nothing else.

Never another exception, never 2 GiB of memory, never a file outside the folder that was given.
"""

from __future__ import annotations

import io
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from config import load
from config.errors import CheckpointError, TandemError, UnsupportedOperation
from data import folds, sources
from data.decode.image import decode
from ensemble.oof import oof_files
from infer import runtimes
from models.card import CARD_KEY, read_card
from models.weights import loading
from tests.unit import members
from training.loop import checkpoint
from training.run import inventory

SMALL = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
# What a mutation puts in: paths that lead out, lengths beyond all measure, and the marks of the formats.
WORDS = [b"../secret.png", b"/etc/passwd", b"..", b"\x00", b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x80\x80\x80\x80\x08"]
WORDS += [
    b"[" * 40,
    b"{",
    b'"',
    b"\n",
    b",",
    b"9" * 30,
    b"1e999",
    b"-1",
    b"!!python/object:os.system",
    b"&a [*a]",
    b"nan",
]
edits = st.tuples(st.floats(0, 1), st.integers(0, 12), st.one_of(st.sampled_from(WORDS), st.binary(max_size=6)))


def mutants(whole: bytes) -> st.SearchStrategy[bytes]:
    """`whole` with pieces cut out, put in and replaced, or cut short; sometimes something else altogether."""

    def apply(changes: list[tuple[float, int, bytes]], cut: float) -> bytes:
        mutant = bytearray(whole)
        for place, length, piece in changes:
            at = int(place * len(mutant))
            mutant[at : at + length] = piece
        return bytes(mutant if cut < 0.5 else mutant[: int(2 * (1 - cut) * len(mutant))])

    changed = st.builds(apply, st.lists(edits, min_size=1, max_size=4), st.floats(0, 1))
    return st.one_of(changed, changed, changed, changed, st.binary(max_size=200))


opened: list[str] | None = None


def _note(event: str, arguments: tuple) -> None:
    if opened is not None and event == "open":
        opened.append(str(arguments[0]))


sys.addaudithook(_note)


@contextmanager
def only_our_errors() -> Iterator[None]:
    """Lets our own errors pass, and looks for files that nobody may read."""
    global opened
    opened = []
    try:
        yield
    except TandemError as error:
        assert str(error), "an error without a text"
    finally:
        read, opened = opened, None
    assert not [path for path in read if "secret" in path or path.startswith("/etc/passwd")]


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before < 2 * 2**30


def fuzz(whole: bytes, examples: int, check: Callable[[bytes], None]) -> None:
    @settings(max_examples=examples, **SMALL)
    @given(mutants(whole))
    def run(data: bytes) -> None:
        with only_our_errors():
            check(data)

    run()


def test_a_damaged_config_ends_in_one_of_our_errors(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    whole = load.to_yaml(load.parse(["--data.root", str(tmp_path)], prog="test")).encode()

    def check(data: bytes) -> None:
        path.write_bytes(data)
        load.read(path)

    fuzz(whole, 800, check)


def test_any_command_line_ends_in_one_of_our_errors() -> None:
    words = st.one_of(
        st.sampled_from(["--data.root", "--train.epochs", "--resume", "--config", "demo", "3"]), st.text()
    )

    @settings(max_examples=500, **SMALL)
    @given(st.lists(words, max_size=6))
    def run(argv: list[str]) -> None:
        with only_our_errors():
            if not {"--help", "-h", "--version", "--print_config"} & set(argv):
                load.parse(argv, prog="test")

    run()


def test_a_damaged_table_opens_nothing_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"not yours")
    root = tmp_path / "data"
    (root / "train").mkdir(parents=True)
    for name in "abcd":
        (root / "train" / f"{name}.png").write_bytes(b"")

    def check(data: bytes) -> None:
        (root / "train.csv").write_bytes(data)
        table = sources.load(root)
        assert all(path.resolve().is_relative_to(root.resolve()) for path in table.paths)

    fuzz(b"ID,target\na.png,1\nb,2\ntrain/c.png,1\nd.png,2\n", 2500, check)


def test_a_damaged_folds_file_ends_in_one_of_our_errors(tmp_path: Path) -> None:
    table = sources.Table(["a", "b", "c"], [Path(n) for n in "abc"], np.array([0, 1, 0]), ("x", "y"), tmp_path)
    folds.write(tmp_path / "folds.csv", table, np.array([0, 1, -1]))
    path = tmp_path / "mutant.csv"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        folds.read(path, table)

    fuzz((tmp_path / "folds.csv").read_bytes(), 800, check)


def picture(kind: str, mode: str) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 4), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB"), ("WEBP", "RGB"), ("TIFF", "RGB"), ("GIF", "P"), ("BMP", "RGB")],
)
def test_a_damaged_image_decodes_or_ends_in_one_of_our_errors(kind: str, mode: str) -> None:
    def check(data: bytes) -> None:
        image = decode(data, pixel_limit=2**24)
        assert image.dtype == np.uint8
        assert image.ndim == 3

    fuzz(picture(kind, mode), 400, check)


def test_damaged_weights_are_refused_before_they_are_used(tmp_path: Path) -> None:
    made = members.checkpoint(tmp_path / "made")
    small = {"head.weight": np.ones((2, 3), np.float32), "head.bias": np.zeros(2, np.float32)}
    loading.write(tmp_path / "small.safetensors", small, {CARD_KEY: members.card().to_json()})
    path = made / "model.safetensors"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        with pytest.raises(CheckpointError):  # the manifest stands before the reader
            loading.resolve(None, made)  # type: ignore[arg-type]
        loading.read(path)
        read_card(made)

    fuzz((tmp_path / "small.safetensors").read_bytes(), 1500, check)


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "model.safetensors"])
def test_a_damaged_checkpoint_is_listed_or_refused(name: str, tmp_path: Path) -> None:
    made = members.checkpoint(tmp_path / "fold_0" / "best")
    (made / "state.json").write_text('{"epoch": 1, "scores": {"macro_f1": 0.5}}')
    checkpoint.manifest.write(made)
    path = made / name

    def check(data: bytes) -> None:
        path.write_bytes(data)
        for found in inventory.find(tmp_path):
            assert inventory.line(inventory.look(found))
        checkpoint.read_state(made)

    fuzz(path.read_bytes()[:3000], 250, check)


def test_damaged_out_of_fold_logits_end_in_one_of_our_errors(tmp_path: Path) -> None:
    run = members.run(tmp_path / "run", [np.zeros((4, 3))], np.zeros(4, np.int64), list("abcd"))
    path = run / "fold_0" / "oof.npz"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        oof_files.read(run)

    fuzz(path.read_bytes(), 500, check)


def tiny_onnx(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kernel = numpy_helper.from_array(np.ones((32 * 32 * 3, 3), np.float32), "kernel")
    shape = numpy_helper.from_array(np.array([-1, 32 * 32 * 3], np.int64), "shape")
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "kernel"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 32, 32, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph(nodes, "tiny", [images], [logits], [kernel, shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {CARD_KEY: members.card().to_json()})
    onnx.save(model, path)


def test_a_damaged_onnx_file_ends_in_one_of_our_errors(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    tiny_onnx(path)
    whole = path.read_bytes()
    assert runtimes.open(path).logits(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 3)

    def check(data: bytes) -> None:
        path.write_bytes(data)
        runtimes.open(path).logits(np.zeros((2, 32, 32, 3), np.uint8))

    # Most of the file is the kernel; the graph before it and after it is what matters.
    fuzz(whole, 250, check)
    fuzz(whole[:200] + whole[-1200:], 250, check)


def tiny_package(path: Path) -> None:
    ct = pytest.importorskip("coremltools")
    from coremltools.converters.mil import Builder

    @Builder.program(input_specs=[Builder.TensorSpec((1, 32, 32, 3))], opset_version=ct.target.iOS17)
    def program(images):
        flat = Builder.reshape(x=images, shape=[1, 32 * 32 * 3])
        return Builder.linear(x=flat, weight=np.ones((3, 32 * 32 * 3), np.float32), name="logits")

    made = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    made.user_defined_metadata[CARD_KEY] = members.card().to_json()
    made.save(str(path))


def test_a_package_cannot_name_weights_outside(tmp_path: Path) -> None:
    path = tmp_path / "m.mlpackage"
    tiny_package(path)
    program = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    inside, outside = b"@model_path/weights/weight.bin", b"@model_path///etc/./././passwd"
    assert len(inside) == len(outside)
    assert inside in program.read_bytes()
    program.write_bytes(program.read_bytes().replace(inside, outside))
    with pytest.raises(UnsupportedOperation, match="only files under @model_path"):
        runtimes.open(path, "mil_reference")


def test_a_damaged_core_ml_package_ends_in_one_of_our_errors(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mlpackage"
    tiny_package(whole)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    assert runtimes.open(whole, "mil_reference").logits(images).shape == (1, 3)
    names = ("Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin")
    for name in names:
        mutant = tmp_path / "mutant.mlpackage"
        shutil.copytree(whole, mutant)

        def check(data: bytes, mutant: Path = mutant, name: str = name) -> None:
            (mutant / name).write_bytes(data)
            runtimes.open(mutant, "mil_reference").logits(images)

        fuzz((whole / name).read_bytes()[:4000], 170, check)
        shutil.rmtree(mutant)
