"""`python -m doctor`: it reports whatever is missing or broken, and never ends with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from doctor import engines, host, packages
from doctor.check import BAD, Check
from tests.unit.test_house import ROOT

CRASH = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
# Of each framework a stand-in, so that the test waits for none.
BROKEN = {
    "torch": CRASH,
    "mlx": "raise ImportError('libmlx.so: cannot open shared object file')\n",
    "onnxruntime": "raise RuntimeError('built for another NumPy')\n",
    "coremltools": "raise ModuleNotFoundError(\"No module named 'coremltools'\", name='coremltools')\n",
}
# Loaded by every interpreter at its start, and so by the probes, too.
NOTHING_INSTALLED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] not in sys.stdlib_module_names and name.partition('.')[0] not in ('doctor', 'config'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Block())
"""


def report(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "HF_TOKEN": "hf_never_shown"}
    given = [sys.executable, "-m", "doctor", *words]
    return subprocess.run(given, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_a_framework_that_crashes_on_import_is_a_line_of_the_report(tmp_path: Path) -> None:
    for name, code in BROKEN.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    done = report(tmp_path, "--json")
    assert done.returncode == 1 and not done.stderr
    found = json.loads(done.stdout)
    lines = {check["name"]: check for check in found["checks"]}
    assert found["engines"] == []
    assert lines["torch"]["status"] == BAD and "SIGSEGV" in lines["torch"]["found"]
    assert lines["mlx"]["status"] == BAD and "libmlx.so" in lines["mlx"]["found"]
    assert "another NumPy" in lines["onnx"]["found"]
    assert "not installed" in lines["coreml"]["found"] and lines["coreml"]["status"] == "note"
    assert all(lines[name]["remedy"] for name in ("torch", "mlx", "onnx", "coreml", "hub"))
    assert lines["packages"]["details"]["numpy"]
    assert "hf_never_shown" not in done.stdout, "a report is shared"


def test_without_any_package_the_doctor_still_reports(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NOTHING_INSTALLED)
    done = report(tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "no engine can run" in done.stdout and "make install" in done.stdout
    assert "bad   numpy" in done.stdout


def test_a_check_that_fails_itself_does_not_end_the_report(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import doctor.__main__ as program

    def broken() -> None:
        raise OSError("no /proc here")

    monkeypatch.setattr(program, "_CHECKS", {"chip": broken, "python": host.python})
    assert program.main([]) == 1
    printed = capsys.readouterr().out
    assert "note  chip         not checked: OSError: no /proc here" in printed and "python       3." in printed


def found(check, name: str) -> Check:
    return next(line for line in check() if line.name == name and line.status == BAD)


@pytest.mark.parametrize(
    ("versions", "check", "name", "says"),
    [
        ({"mlx": "0.31.0"}, packages.extras, "mlx", "wrong Metal gradients"),
        ({"opencv-python-headless": "4.14.0.90"}, packages.required, "opencv-python-headless", "crash on arm64 macOS"),
        ({"numpy": "1.26.4"}, packages.required, "numpy", "numpy>=2.0 is needed"),
        ({"torch": "2.15.0+cpu", "torchvision": "0.29.2+cu132"}, packages.combinations, "torchvision", "CUDA build"),
        ({"opencv-python": "4.13.0", "opencv-python-headless": "4.13.0.92"}, packages.combinations, "opencv", "cv2"),
        ({"onnxruntime": "1.31", "onnxruntime-gpu": "1.31"}, packages.combinations, "onnxruntime", "both are"),
    ],
)
def test_versions_and_pairs_that_are_known_to_be_bad(versions, check, name, says, monkeypatch) -> None:
    monkeypatch.setattr(packages, "installed", lambda: versions)
    monkeypatch.setattr(packages.probe, "import_error", lambda names: "")
    monkeypatch.setattr(packages.sys, "platform", "linux")
    line = found(check, name)
    assert says in line.found and "install" in line.remedy


@pytest.mark.parametrize(("version", "status"), [((3, 10, 2), BAD), ((3, 12, 1), "ok"), ((3, 14, 0), BAD)])
def test_a_python_that_tandem_does_not_run_on_is_bad(version, status, monkeypatch) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    (line,) = host.python()
    assert line.status == status


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refused(request, timeout: float) -> None:
        asked.append(timeout)
        raise OSError("no route to host")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(host.urllib.request, "urlopen", refused)
    (line,) = host.hub()
    assert asked == [3.0] and "no route to host" in line.found and "--weights none" in line.remedy


TORCH = {"version": "2.15.0", "cuda": "13.2", "hip": None, "torchvision": "0.29", "timm": "1.0", "device": "cuda"}
TORCH |= {"remark": "", "engine": "backends.torch.session", "compile": ""}
GPUS = [{"name": "RTX 4090", "capability": "8.9", "gib": 23.6}]


@pytest.mark.parametrize(
    ("changed", "smi", "status", "says"),
    [
        ({"gpus": GPUS}, "RTX 4090, 590.1, 24564 MiB", ["ok", "ok"], "RTX 4090, capability 8.9"),
        ({"gpus": GPUS, "compile": "needs a C compiler: install gcc"}, "", ["note"], "install gcc"),
        ({"device": "cpu", "cuda": None}, "RTX 4090, 590.1, 24564 MiB", ["ok", "bad"], "torch runs on the cpu"),
        (
            {"error": "RuntimeError: operator torchvision::nms does not exist", "step": "libraries"},
            "",
            ["bad"],
            "one index",
        ),
        ({"error": "BackendUnavailable: cuda: update the driver", "step": "device"}, "", ["bad"], "update the driver"),
    ],
)
def test_what_torch_says_of_its_gpu_becomes_a_line_with_a_remedy(changed, smi, status, says, monkeypatch) -> None:
    monkeypatch.setattr(engines.probe, "run", lambda module: TORCH | changed)
    monkeypatch.setattr(engines, "nvidia", lambda: smi)
    lines = list(engines.torch())
    assert [line.status for line in lines] == status
    assert any(says in f"{line.found} {line.remedy}" for line in lines)


def test_an_mlx_without_metal_is_bad_on_a_mac_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"version": "0.32.4", "metal": False, "device": "Device(cpu, 0)", "info": {}, "engine": "x"}
    monkeypatch.setattr(engines.probe, "run", lambda module: found)
    for platform, status in (("linux", "ok"), ("darwin", BAD)):
        monkeypatch.setattr(engines.sys, "platform", platform)
        (line,) = engines.mlx()
        assert line.status == status
