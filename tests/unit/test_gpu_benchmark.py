"""`make bench-gpu` without a GPU: a dry run of the whole on the CPU, and what it does when an arm cannot run."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_arms
from config.errors import BackendUnavailable, OutOfMemory

ROOT = Path(__file__).parents[2]
CUDA = torch.device("cuda")
SETTING = gpu_arms.Setting("cpu", 1, 1, "")


@pytest.fixture(autouse=True)
def compile_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run replaces torch.compile, which later tests of this process need."""
    monkeypatch.setattr(torch, "compile", torch.compile)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a dry run with every arm."""
    out = tmp_path_factory.mktemp("dry") / "lines.jsonl"
    words = ["-m", "benchmarks", "gpu", "--device", "cpu", "--updates", "1", "--workers", "1", "--out", str(out)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:-1] == out.read_text().splitlines(), "the screen shows what the file has"
    return out


def test_a_dry_run_measures_every_arm(lines: Path) -> None:
    found = {line["arm"]: line for line in map(json.loads, lines.read_text().splitlines())}
    assert list(found) == [arm.name for arm in gpu.ARMS]
    for name, line in found.items():
        assert line["device"] == "cpu" and line.keys().isdisjoint({"skipped", "stopped", "failed"}), line
        assert name == "machine" or line["images_per_second"]
    assert found["machine"]["versions"]["timm"]
    trained = [line for name, line in found.items() if name.startswith("train ")]
    assert len(trained) == 10 and [line["compiled"] for line in trained].count(True) == 5
    for line in trained:
        rates = line["images_per_second"]
        assert line["ratio"] == pytest.approx(rates["tandem"] / rates["timm"], rel=0.01)
        assert line["mfu"] is line["peak_gib"] is None, "nobody knows them of a CPU"
    assert found["deterministic"]["same_bits"] is True
    assert found["inference"]["images_per_second"].keys() == {"default", "bf16", "bf16 compiled", "timm bf16"}


def test_the_page_has_every_table_and_also_that_of_a_part(lines: Path, tmp_path: Path) -> None:
    page = lines.with_suffix(".md").read_text()
    titles = list(gpu.TITLES.values())
    for title in titles:
        assert f"\n## {title}\n" in page
    assert "A dry run on the CPU: no figure means anything" in page and "Not measured" not in page
    part = tmp_path / "part.jsonl"
    part.write_text(lines.read_text()[:900])  # the machine, a network, and a line that is cut off
    assert gpu.main(["--page", str(part)]) == 0
    page = part.with_suffix(".md").read_text()
    assert page.count("| test_resnet | 32 | 4 |") == 1 and titles[1] not in page


def test_what_cannot_run_is_a_line_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arm = gpu.Arm("loader", 1, "loader")
    monkeypatch.setitem(sys.modules, "PIL", None)
    setting = SETTING._replace(folder=str(tmp_path))
    assert [*gpu.guarded(arm, setting)] == [{"skipped": "needs PIL, which is not installed here"}]

    def broken(*_: Any) -> Iterator[dict[str, Any]]:
        yield {"size": 32}
        raise errors.pop()

    errors = [ValueError("no\n  such thing"), BackendUnavailable("it is not there")]
    broken.__name__ = "loader"
    monkeypatch.setattr(gpu_arms, "loader", broken)
    assert [*gpu.guarded(arm, SETTING)][-1] == {"size": 32, "skipped": "it is not there"}
    assert [*gpu.guarded(arm, SETTING)][-1] == {"size": 32, "failed": "ValueError: no such thing"}
    assert "Traceback" in capsys.readouterr().err


def test_an_arm_that_takes_too_long_is_stopped_and_the_others_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.multiprocessing, "get_all_start_methods", lambda: ["spawn"])  # nothing is imported ahead
    figures = gpu.measured(gpu.ARMS[1], ("cpu", 10**6, 1, str(tmp_path)), 0.5)
    assert figures["stopped"] == "after 0 s"
    assert multiprocessing.active_children() == [], "the arm's process is gone"
    monkeypatch.setattr(gpu, "measured", lambda *_: {"name": "cpu"})
    assert gpu.main(["--device", "cpu", "--seconds", "19", "--out", str(tmp_path / "x.jsonl")]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()[:-1]]
    assert len(told) == len(gpu.ARMS)
    assert told[1]["skipped"] == "takes about 20 s, and 19 s are left"
    assert "- train resnet50 eager: skipped: takes" in (tmp_path / "x.md").read_text()


UNTOUCHED = """
import torch
def touched(*_, **__):
    raise SystemExit("CUDA is started")
for module, names in ((torch._C, ("_cuda_getDeviceCount", "_cuda_init")), (torch.cuda, ("is_available", "_lazy_init"))):
    for name in names:
        if hasattr(module, name):
            setattr(module, name, touched)
import benchmarks.gpu_arms
"""


def test_what_the_arms_are_forked_from_does_not_start_cuda() -> None:
    """CUDA does not survive a fork: every arm would fail, on a GPU alone."""
    done = subprocess.run([sys.executable, "-c", UNTOUCHED], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_the_batch_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(setting: gpu_arms.Setting, name: str, compiled: bool) -> Iterator[dict[str, Any]]:
        batch = setting.case(name, compiled).batch
        yield {"batch": batch}
        if batch > 2:
            raise (OutOfMemory("full"), torch.OutOfMemoryError("full"))[batch > 3]

    monkeypatch.setattr(gpu_arms, "train", train)
    assert [line["batch"] for line in gpu_arms.run(SETTING, "train", ("resnet50", False))] == [4, 2]
    monkeypatch.setattr(gpu_arms, "_HALVED", 1)
    with pytest.raises(torch.OutOfMemoryError):
        [*gpu_arms.run(SETTING, "train", ("resnet50", False))]


def test_a_figure_of_the_cpu_is_never_called_one_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    case = SETTING.case("resnet50", False)
    opened = SimpleNamespace(describe=lambda: {"device": "cpu: x86_64"})
    monkeypatch.setattr(gpu_arms.session, "open", lambda *_, **__: opened)
    monkeypatch.setenv("TANDEM_TORCH_DEVICE", "cpu")
    with pytest.raises(RuntimeError, match="computes on cpu, not on cuda"):
        gpu_arms.Ours(case._replace(device=CUDA))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = gpu.guarded(gpu.ARMS[0], ("cuda", 0, 0, ""))
    assert "finds no CUDA device" in line["skipped"]
    monkeypatch.setattr(gpu, "measured", lambda *_: line)
    assert gpu.main(["--out", str(tmp_path / "x.jsonl")]) == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", None),
        ("NVIDIA L40S", 362),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", None),
    ],
)
def test_the_peak_is_that_of_the_very_card(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names that the drivers give; a wrong peak is a wrong MFU, so others have none."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert gpu_arms.peak_of(CUDA) == peak
    assert gpu_arms.peak_of(torch.device("cpu")) is None


def test_the_machine_and_the_share_of_its_peak_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="NVIDIA A100-SXM4-80GB", total_memory=80 * 2**30, major=8, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: card.name)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    (line,) = gpu_arms.machine(SETTING._replace(device="cuda"))
    assert (line["memory_gib"], line["capability"], line["precision"], line["peak_tflops"]) == (80, "8.0", "bf16", 312)
    figures = gpu_arms._rates({"tandem": [900.0, 1000.0], "timm": [500.0]}, 0.156, CUDA)
    assert figures["mfu"] == {"tandem": 0.5, "timm": 0.25} and figures["ratio"] == 2
    assert figures["spread"] == {"tandem": 0.1, "timm": 0}
