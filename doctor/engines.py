"""Which engines and runtimes can run here, from what their probes print."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from doctor import probe
from doctor.check import BAD, NOTE, OK, Check

# What a CPU build beside a CUDA build raises when torchvision is imported.
_MIXED = "torchvision::nms"
_REINSTALL = {
    "torch": 'pip install -e ".[torch]"',
    "mlx": 'pip install -e ".[mlx]"',
    "onnx": 'pip install -e ".[convert]"',
    "coreml": 'pip install -e ".[convert]" (macOS and Linux x86-64 only)',
}


def torch() -> Iterator[Check]:
    """The torch engine: its device, and whether torch.compile can be had."""
    found = probe.run("doctor.probe_torch")
    if "error" in found:
        yield _failed("torch", found)
        return
    # The CPU gains little by compiling; MPS does not compile at all.
    remedy = found["remark"] or (found["compile"] if found["device"].startswith("cuda") else "")
    yield Check("torch", NOTE if remedy else OK, _torch_line(found), remedy, found)
    gpu = nvidia()
    if gpu and not found["device"].startswith("cuda"):
        remedy = "update the driver, or install torch with CUDA: pip install --force-reinstall torch torchvision"
        yield Check("gpu", BAD, f"{gpu}, and torch runs on the {found['device']}", remedy)
    elif gpu:
        yield Check("gpu", OK, gpu)


def mlx() -> Iterator[Check]:
    """The MLX engine and whether it has Metal."""
    found = probe.run("doctor.probe_mlx")
    if "error" in found:
        yield _failed("mlx", found)
        return
    info = found["info"]
    text = f"mlx {found['version']} on {found['device']}{', ' + info['device_name'] if 'device_name' in info else ''}"
    if sys.platform == "darwin" and not found["metal"]:
        yield Check("mlx", BAD, f"{text}: no Metal", "use an arm64 Python on an Apple chip", found)
    elif not found["metal"]:
        yield Check("mlx", OK, f"{text}: no Metal, 10 to 20 times slower than torch", details=found)
    else:
        yield Check("mlx", OK, text, details=found)


def onnx() -> Iterator[Check]:
    """ONNX Runtime's providers, and whether ONNX files can be written."""
    found = probe.run("doctor.probe_onnx")
    if "error" in found:
        yield _failed("onnx", found)
    else:
        text = f"onnxruntime {found['version']} ({', '.join(found['providers'])}), onnx {found['onnx']}"
        yield Check("onnx", OK, text, details=found)


def coreml() -> Iterator[Check]:
    """Whether Core ML packages can be written, and executed by Core ML."""
    found = probe.run("doctor.probe_coreml")
    if "error" in found:
        yield _failed("coreml", found)
    else:
        yield Check("coreml", OK, f"coremltools {found['version']}, {found['predicts']}", details=found)


def nvidia() -> str:
    """The machine's NVIDIA GPUs with driver and memory, as nvidia-smi names them; "" where there are none."""
    if not shutil.which("nvidia-smi"):
        return ""
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        printed = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(line.strip() for line in printed.splitlines() if line.strip())


def _torch_line(found: Mapping[str, Any]) -> str:
    gpus = "; ".join(
        f"{gpu['name']}, capability {gpu['capability']}, {gpu['gib']} GiB" for gpu in found.get("gpus", [])
    )
    built = f"CUDA {found['cuda']}" if found["cuda"] else f"ROCm {found['hip']}" if found["hip"] else "no CUDA"
    libraries = f"torchvision {found['torchvision']}, timm {found['timm']}"
    where = f"{found['device']} ({gpus})" if gpus else found["device"]
    return f"torch {found['version']} ({built}) on {where}, {libraries}{', torch.compile' * (not found['compile'])}"


def _failed(name: str, found: Mapping[str, Any]) -> Check:
    """A framework that is not installed is a note; one that is there and fails is bad."""
    error, version = found["error"], found.get("version", "")
    if error.startswith("ModuleNotFoundError") and "version" not in found:
        return Check(name, NOTE, f"not installed ({error.partition(': ')[2]})", _REINSTALL[name], dict(found))
    remedy = _REINSTALL[name].replace("pip install", "pip install --force-reinstall", 1)
    if _MIXED in error:
        error += ": torch and torchvision are of different builds"
        remedy = "install both from one index: pip install --force-reinstall torch torchvision"
    if error.startswith("BackendUnavailable"):
        remedy = "as the line says"
    step = {"device": "cannot compute", "engine": "cannot be opened", "prediction": "cannot predict"}
    what = step.get(str(found.get("step", "")), "cannot be imported")
    return Check(name, BAD, f"{name} {version}".strip() + f" {what}: {error}", remedy, dict(found))
