import io
import json

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.special import softmax

import infer
from config.errors import BackendUnavailable, CheckpointError, ConfigError, DataError, WeightsError
from data.augment import transforms
from data.cache import images
from infer import runtimes
from infer.member import ensemble_of
from infer.runner import Runner
from models.card import CARD_KEY, Preprocessing
from models.weights import loading
from tests.unit import members

TOLERANCE = 2e-6  # float32 answers


def logits_of(path, pixels):
    predictor = runtimes.open(path)
    return predictor.logits(np.ascontiguousarray(pixels)).astype(np.float64)


@pytest.fixture
def pair(tmp_path):
    """Two members of one preprocessing, and seven images with their pixels."""
    paths, pixels = members.photographs(tmp_path / "images")
    return [members.checkpoint(tmp_path / name, seed) for seed, name in enumerate("ab")], paths, pixels


def test_one_member_answers_as_its_session_does(pair):
    (a, _), paths, pixels = pair
    with infer.load(a) as model:
        names, probabilities = model.predict(paths)
        assert model.class_names == members.CLASSES
    expected = softmax(logits_of(a, pixels), axis=1)
    assert np.allclose(probabilities, expected, atol=TOLERANCE) and probabilities.dtype == np.float32
    assert names == members.CLASSES and len(set(expected.argmax(axis=1))) > 1


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_weights_temperatures_and_views_count(pair, tmp_path, combine):
    (a, b), paths, pixels = pair
    file = tmp_path / "ensemble.yaml"
    listed = [
        {"path": "a", "weight": 0.3, "temperature": 2.0},
        {"path": "b", "weight": 0.9, "temperature": 0.5, "runtime": "numpy"},
    ]
    whole = {"combine": combine, "temperature": 1.5, "views": ["flip"], "members": listed}
    file.write_text(yaml.safe_dump(whole))
    scaled = [[logits_of(p, x) / t for x in (pixels, pixels[:, :, ::-1])] for p, t in ((a, 2.0), (b, 0.5))]
    if combine == "probabilities":
        mean = np.average([softmax(views, axis=2).mean(0) for views in scaled], axis=0, weights=[0.3, 0.9])
        expected = mean ** (1 / 1.5) / (mean ** (1 / 1.5)).sum(axis=1, keepdims=True)
    else:
        expected = softmax(np.average(np.mean(scaled, axis=1), axis=0, weights=[0.3, 0.9]) / 1.5, axis=1)
    with infer.load(file) as model:
        assert np.allclose(model.predict(paths).probabilities, expected, atol=TOLERANCE)


@pytest.mark.parametrize(("batch_size", "workers"), [(3, 1), (3, 4), (64, 2)])
def test_rows_are_in_input_order_whatever_the_batches(pair, batch_size, workers):
    (a, b), paths, pixels = pair
    order = [4, 0, 6, 1, 5, 2, 3]
    with Runner(ensemble_of([str(a), str(b)])) as runner:
        parts = list(runner.run([paths[i] for i in order], batch_size, workers))
        expected = runner.predict([pixels[i] for i in order]).probabilities
    assert np.concatenate([part.rows for part in parts]).tolist() == list(range(7))
    assert np.allclose(np.concatenate([part.probabilities for part in parts]), expected, atol=TOLERANCE)
    votes = np.concatenate([part.votes for part in parts])
    alone = [logits_of(path, pixels[order]).argmax(axis=1) for path in (a, b)]
    assert np.array_equal(votes, np.stack(alone, axis=1))


def test_members_of_other_sizes_each_see_their_own_pixels(tmp_path):
    paths, pixels = members.photographs(tmp_path / "images", size=48)
    preps = [{"crop_pct": 0.8}, {"crop_pct": 0.8, "mean": (0.5,) * 3}, {"size": 16, "fit": "squash"}]
    folders = [members.checkpoint(tmp_path / str(i), i, members.card(**prep)) for i, prep in enumerate(preps)]
    expected = np.zeros((7, 3))
    for folder, prep in zip(folders, preps, strict=True):
        transform = transforms.EvalTransform(Preprocessing(**{"size": 32, **prep}))
        expected += softmax(logits_of(folder, np.stack([transform(image) for image in pixels])), axis=1) / 3
    with Runner(ensemble_of([str(folder) for folder in folders])) as runner:
        parts = list(runner.run(paths, batch_size=4, workers=2))
    assert np.allclose(np.concatenate([part.probabilities for part in parts]), expected, atol=TOLERANCE)


def test_only_what_changes_an_images_pixels_tells_inputs_apart():
    wide, squashed = Preprocessing(32, crop_pct=0.9), Preprocessing(32, crop_pct=0.9, fit="squash")
    assert wide.pixels != Preprocessing(32).pixels and wide.pixels != squashed.pixels
    assert squashed.pixels == Preprocessing(32, fit="squash", mean=(0.5, 0.5, 0.5), pad="background").pixels
    boxed = [Preprocessing(32, fit="letterbox", pad=pad) for pad in ("grey", "background")]
    assert boxed[0].pixels != boxed[1].pixels


def test_an_image_is_decoded_once_whatever_the_members_and_views(tmp_path, monkeypatch):
    paths, _ = members.photographs(tmp_path / "images")
    folders = [members.checkpoint(tmp_path / str(i), i) for i in range(3)]
    decoded = []
    original = images.decode
    monkeypatch.setattr(images, "decode", lambda path, *rest: decoded.append(path) or original(path, *rest))
    with Runner(ensemble_of([str(folder) for folder in folders], ["d4"])) as runner:
        list(runner.run(paths, batch_size=2))
    assert sorted(decoded) == paths


def test_every_batch_has_one_shape_so_that_nothing_is_compiled_twice(pair):
    (a, _), paths, _ = pair
    shapes = []
    with Runner(ensemble_of([str(a)], ["flips"])) as runner:
        predictor = runner._members._open[0]
        answer = predictor.logits
        predictor.logits = lambda batch: shapes.append((batch.shape, batch.flags.c_contiguous)) or answer(batch)
        list(runner.run(paths, batch_size=4))
    assert set(shapes) == {((4, 32, 32, 3), True)} and len(shapes) == 2 * 4


def test_each_member_answers_alone_with_all_views(pair):
    folders, paths, _ = pair
    with Runner(ensemble_of([str(folder) for folder in folders], ["flip"])) as runner:
        for folder, one in zip(folders, runner.members(), strict=True):
            assert one.name == f"{folder} (numpy)"
            with infer.load(folder, views=["flip"]) as expected:
                assert np.array_equal(one.predict(paths).probabilities, expected.predict(paths).probabilities)


def test_files_bytes_and_arrays_mix(pair):
    (a, _), paths, pixels = pair
    png = io.BytesIO()
    Image.fromarray(pixels[2]).save(png, "png")
    with infer.load(a) as model:
        mixed = model.predict([str(paths[0]), pixels[1], png.getvalue(), paths[3]]).probabilities
        assert np.array_equal(mixed, model.predict(pixels[:4]).probabilities)
        assert model.predict([]).probabilities.shape == (0, 3) and list(model.run([])) == []
        with pytest.raises(DataError, match="uint8 of shape"):
            model.predict([pixels[0].astype(np.float32)])


def test_a_checkpoints_ema_weights_are_used_where_there_are_any(pair, tmp_path):
    (_a, b), _, pixels = pair
    both = members.checkpoint(tmp_path / "both", seed=0)
    arrays, metadata = loading.read(b / "model.safetensors")
    loading.write(both / "ema.safetensors", arrays, metadata)
    members.manifest.write(both)
    assert np.array_equal(logits_of(both, pixels), logits_of(b, pixels))


def test_members_of_other_classes_are_refused_by_name(pair, tmp_path):
    (a, _), _, _ = pair
    for classes, found in (
        (("ant", "bee", "dog"), "class 'dog' where the other has 'cat'"),
        (("bee", "ant", "cat"), "the same classes in another order"),
        (("ant", "bee"), "2 classes where the other has 3"),
    ):
        other = members.checkpoint(tmp_path / "-".join(classes), of=members.card(classes))
        with pytest.raises(ConfigError, match=f"{other.name}.*{found}"):
            Runner(ensemble_of([str(a), str(other)]))


def test_a_member_without_a_card_is_refused(pair):
    (a, _), _, _ = pair
    arrays, _ = loading.read(a / "model.safetensors")
    loading.write(a / "model.safetensors", arrays, {})
    with pytest.raises(WeightsError, match="no Tandem card"):
        infer.load(a)


def test_a_damaged_checkpoint_is_refused(pair):
    (a, _), _, _ = pair
    file = a / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256"):
        infer.load(a)
    file.write_bytes(data[:5])
    with pytest.raises(WeightsError, match="damaged"):
        infer.load(a)


def test_the_runtime_is_chosen_by_the_artefact_and_checked(pair, tmp_path):
    (a, _), _, _ = pair
    (tmp_path / "x.onnx").touch()
    (tmp_path / "x.mlpackage").mkdir()
    assert runtimes.choose(a) == "numpy" and runtimes.choose(a, "mlx") == "mlx"
    assert runtimes.choose(tmp_path / "x.onnx") == "onnx"
    assert runtimes.choose(tmp_path / "x.mlpackage") in ("coreml", "mil_reference")
    assert runtimes.choose(tmp_path / "x.mlpackage", "mil_reference") == "mil_reference"
    with pytest.raises(ConfigError, match="torch cannot run it; it runs on onnx"):
        runtimes.choose(tmp_path / "x.onnx", "torch")
    with pytest.raises(ConfigError, match="did you mean torch"):
        infer.load(f"{a}@toch")
    with pytest.raises(CheckpointError, match=r"holds the checkpoints .*/a, .*/b"):
        runtimes.choose(tmp_path)
    for name in ("best", "step_00000001"):
        members.checkpoint(tmp_path / "run" / "fold_0" / name)
    with pytest.raises(CheckpointError, match=r"holds the checkpoints \S+/fold_0/best$"):
        runtimes.choose(tmp_path / "run")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        runtimes.choose(tmp_path / "absent")


def test_an_engine_that_is_not_installed_is_named(pair, monkeypatch):
    (a, _), _, _ = pair
    card = json.loads(members.card().to_json())
    arrays, _ = loading.read(a / "model.safetensors")
    loading.write(a / "model.safetensors", arrays, {CARD_KEY: json.dumps({**card, "trained_with": "torch"})})
    members.manifest.write(a)
    monkeypatch.setattr("backends.installed", lambda module: module == "mlx")
    assert runtimes.choose(a) == "mlx"
    monkeypatch.setattr("backends.installed", lambda module: False)
    with pytest.raises(BackendUnavailable, match="pip install"):
        infer.load(a)


def command(capsys, *words):
    code = infer.main([str(word) for word in words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command_writes_a_submission_in_the_samples_order(pair, tmp_path, capsys):
    (a, b), paths, pixels = pair
    sample = tmp_path / "sample.csv"
    ids = [path.name for path in paths][::-1]
    sample.write_text("ID,target\n" + "".join(f"{name},ant\n" for name in ids))
    words = ["--member", a, b, "--images", tmp_path / "images", "--tta", "flip", "--workers", 2]
    code, out, err = command(capsys, *words, "--sample", sample, "--out", tmp_path / "new" / "s.csv")
    assert (code, err) == (0, "") and "class " in out and "mean top-1" in out and "members: 2; views: 2" in out
    with infer.load(a, views=["flip"]) as one, infer.load(b, views=["flip"]) as two:
        mean = (one.predict(pixels).probabilities + two.predict(pixels).probabilities)[::-1] / 2
    expected = [f"{name},{members.CLASSES[best]}" for name, best in zip(ids, mean.argmax(axis=1), strict=True)]
    assert (tmp_path / "new" / "s.csv").read_text().splitlines() == ["ID,target", *expected]
    assert command(capsys, "validate", tmp_path / "new" / "s.csv", "--sample", sample)[0] == 0
    code, _, err = command(capsys, "validate", sample, "--sample", tmp_path / "new" / "s_probabilities.csv")
    assert code == 1 and err.startswith("error: ") and "column 'bee' is missing" in err


def test_the_command_names_the_file_itself_in_a_folder(pair, tmp_path, capsys):
    (a, _), paths, _ = pair
    for runs in (1, 2):
        code, out, _ = command(capsys, "--member", a, "--images", tmp_path / "images", "--out", tmp_path / "subs")
        written = [path for path in (tmp_path / "subs").glob("*_convnext_atto_*.csv") if "prob" not in path.name]
        assert code == 0 and len(written) == runs and any(f"wrote {path} and" in out for path in written)
    assert [line.split(",")[0] for line in written[0].read_text().splitlines()] == ["ID", *(p.name for p in paths)]


def test_the_command_overwrites_nothing_and_says_so_first(pair, tmp_path, capsys):
    (a, _), _, _ = pair
    taken = tmp_path / "s.csv"
    taken.write_text("precious")
    code, out, err = command(capsys, "--member", a, "--images", tmp_path / "images", "--out", taken)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    (tmp_path / "notes").write_text("precious")
    for out in (tmp_path / "notes", tmp_path / "notes" / "s.csv"):
        code, _, err = command(capsys, "--member", a, "--images", tmp_path / "images", "--out", out)
        assert code == 2 and "notes is no folder" in err and err.count("\n") == 1
    assert taken.read_text() == (tmp_path / "notes").read_text() == "precious"


def test_an_unreadable_image_stops_the_command_with_its_name(pair, tmp_path, capsys):
    (a, _), paths, _ = pair
    paths[5].write_bytes(paths[5].read_bytes()[:100])
    out = tmp_path / "s.csv"
    words = ("--member", a, "--images", tmp_path / "images", "--out", out, "--batch_size", 2)
    code, _, err = command(capsys, *words, "--on_bad_image", "error")
    assert code == 1 and "005.png" in err and err.count("\n") == 1 and not out.exists()


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"], ["validate", "--help"]])
def test_help_of_each_command_lists_its_options(words, capsys):
    with pytest.raises(SystemExit) as caught:
        infer.main(words)
    assert caught.value.code == 0 and "--" in capsys.readouterr().out
