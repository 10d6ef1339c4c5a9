"""The local page and its `POST /predict`, as a browser and curl meet them."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import backends
import infer
from config.errors import DataError
from data.cache.images import Picture
from infer import web
from infer.commands.page import Limits
from infer.commands.serve import app
from infer.explain.report import explain, gradcam_overlays
from tests import browser
from tests.unit import members

ROOT = Path(__file__).parents[2]
with_chromium = pytest.mark.skipif(browser.program() is None, reason="no Chromium here")


@pytest.fixture
def model(tmp_path):
    paths, _ = members.photographs(tmp_path / "images", count=3)
    names = [str(members.checkpoint(tmp_path / name, seed)) for seed, name in enumerate("ab")]
    file = tmp_path / "e.yaml"
    file.write_text(json.dumps({"members": [{"path": name} for name in names], "views": ["flip"]}))
    with infer.load(file) as opened:
        yield opened, paths


@pytest.fixture
def port(model):
    """A server of the model in a thread of its own."""
    server = web.Server(app(model[0], Limits(5000, 2000)), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def post(port, body, host="127.0.0.1"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", body, {"Host": f"{host}:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_an_explanation_says_what_the_ensemble_and_each_member_say(model):
    runner, paths = model
    said = explain(runner, paths[0].read_bytes(), 2000)
    expected = runner.predict([paths[0]]).probabilities[0]
    assert np.array_equal(said.probabilities, expected) and said.label == members.CLASSES[expected.argmax()]
    alone = [one.predict([paths[0]]).probabilities[0] for one in runner.members()]
    assert np.array_equal(list(said.members.values()), alone) and list(said.views) == ["original", "hflip"]
    assert np.array_equal(said.views["hflip"], said.views["original"][:, ::-1])
    assert said.margin == pytest.approx(np.sort(expected)[-1] - np.sort(expected)[-2])
    with pytest.raises(DataError, match="32 x 32 pixels"):
        explain(runner, paths[0].read_bytes(), 1000)


def test_checkpoints_of_both_engines_show_where_they_look_and_others_are_left_out(tmp_path):
    torch = pytest.importorskip("torch")
    from models import manifest, registry
    from models.card import CARD_KEY, Card, Preprocessing
    from models.weights import loading

    spec = registry.get("test_resnet", num_classes=3, image_size=96)
    folder = tmp_path / "net"
    folder.mkdir()
    torch.manual_seed(0)
    state = backends.load("torch").open(spec, None).state()
    card = Card("test_resnet", members.CLASSES, Preprocessing(size=96), {"image_size": 96}, "torch")
    loading.write(folder / "model.safetensors", state.weights, {CARD_KEY: card.to_json()})
    manifest.write(folder)
    other = members.checkpoint(tmp_path / "linear")
    paths, _ = members.photographs(tmp_path / "images", count=1)
    file = tmp_path / "e.yaml"
    file.write_text(
        json.dumps(
            {"members": [{"path": str(folder), "runtime": r} for r in ("torch", "mlx")] + [{"path": str(other)}]}
        )
    )
    with infer.load(file) as runner:
        found = gradcam_overlays(runner, paths[0].read_bytes(), 10_000_000, members.CLASSES[1])
        assert [name.rpartition(" ")[2] for name in found] == ["(torch)", "(mlx)"]
        torchs, mlxs = (image.astype(int) for image in found.values())
        assert torchs.shape == (96, 96, 3) and np.abs(torchs - mlxs).max() <= 3
        assert np.abs(torchs - runner.pixels(Picture(paths[0]))).max() > 50


def test_a_port_in_use_is_one_line_that_names_the_option(tmp_path, capsys):
    folder = members.checkpoint(tmp_path / "a")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert infer.main(["serve", "--member", str(folder), "--port", str(taken.getsockname()[1])]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--port" in error


def test_ctrl_c_ends_the_server_with_code_0_and_no_traceback(tmp_path):
    folder = members.checkpoint(tmp_path / "a")
    code = "import sys\nimport tests.numpy_engine\nfrom infer.__main__ import main\nsys.exit(main())"
    words = ["serve", "--member", str(folder), "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("open http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 0


def test_post_predict_answers_and_refuses(model, port):
    runner, paths = model
    status, body = post(port, paths[1].read_bytes())
    said = json.loads(body)
    expected = runner.predict([paths[1]]).probabilities[0]
    assert status == 200 and np.allclose([said["probabilities"][n] for n in members.CLASSES], expected, atol=1e-8)
    assert said["label"] == members.CLASSES[expected.argmax()] and len(said["members"]) == 2
    assert post(port, b"no image")[0] == 422 and post(port, bytes(5001))[0] == 413
    assert post(port, paths[1].read_bytes(), host="evil.example")[0] == 400


@with_chromium
def test_the_page_shows_what_a_chosen_image_is(model, port, tmp_path):
    runner, paths = model
    (tmp_path / "bad.png").write_bytes(b"no image")
    with browser.opened() as chromium:
        page = chromium.new_page(viewport={"width": 390, "height": 800})
        complaints = []
        page.on("console", lambda said: said.type == "error" and complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/")
        page.set_input_files("input[type=file]", [*paths, tmp_path / "bad.png"])
        for words in ("members agree", "unreadable"):
            page.wait_for_function("words => document.body.innerText.includes(words)", arg=words)
        page.wait_for_selector("figure img[alt*=hflip]")
        text = page.inner_text("body")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.get_by_role("button", name=paths[2].name).click()
        page.wait_for_function("name => document.querySelector('#shown h2').innerText === name", arg=paths[2].name)
    assert [line for line in complaints if "422" not in line] == []
    best = runner.predict(paths).probabilities
    assert f"{best[0].max():.1%}" in text and f"{best[2].max():.1%}" in text and "hflip" in text
