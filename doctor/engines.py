"""Which engines and runtimes can run here, from what their probes print."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from doctor import host, probe
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
    """The torch engine: its device, and whether torch.compile works on it."""
    report = probe.run("doctor.probe_torch")
    if "error" in report:
        yield _failed("torch", report)
        return
    gpus = "; ".join(f"{g['name']}, capability {g['capability']}, {g['gib']} GiB" for g in report.get("gpus", []))
    built = f"CUDA {report['cuda']}" if report["cuda"] else f"ROCm {report['hip']}" if report["hip"] else "no CUDA"
    device, compiles = report["device"], ", torch.compile" * (not report["compile"])
    text = f"torch {report['version']} ({built}) on {f'{device} ({gpus})' if gpus else device}"
    text += f", torchvision {report['torchvision']}, timm {report['timm']}{compiles}"
    # The CPU gains little by compiling; MPS does not compile at all.
    remedy = report["remark"] or (report["compile"] if device.startswith("cuda") else "")
    yield Check("torch", NOTE if remedy else OK, text, remedy, report)
    gpu = nvidia()
    if gpu and not device.startswith("cuda"):
        remedy = "update the driver, or install torch with CUDA: pip install --force-reinstall torch torchvision"
        yield Check("gpu", BAD, f"{gpu}, and torch runs on the {device}", remedy)
    elif gpu:
        yield Check("gpu", OK, gpu)


def mlx() -> Iterator[Check]:
    """The MLX engine and whether it has Metal."""
    report = probe.run("doctor.probe_mlx")
    if "error" in report:
        yield _failed("mlx", report)
        return
    info = report["info"]
    text = f"mlx {report['version']} on {report['device']}{', ' + info['device_name'] if 'device_name' in info else ''}"
    if sys.platform == "darwin" and not report["metal"]:
        yield Check("mlx", BAD, f"{text}: no Metal", "use an arm64 Python on an Apple chip", report)
    else:
        slow = "" if report["metal"] else ": no Metal, 10 to 20 times slower than torch"
        yield Check("mlx", OK, f"{text}{slow}", details=report)


def onnx() -> Iterator[Check]:
    """ONNX Runtime's providers, and whether ONNX files can be written."""
    report = probe.run("doctor.probe_onnx")
    if "error" in report:
        yield _failed("onnx", report)
    else:
        text = f"onnxruntime {report['version']} ({', '.join(report['providers'])}), onnx {report['onnx']}"
        yield Check("onnx", OK, text, details=report)


def coreml() -> Iterator[Check]:
    """Whether Core ML packages can be written, and executed by Core ML."""
    report = probe.run("doctor.probe_coreml")
    if "error" in report:
        yield _failed("coreml", report)
    else:
        yield Check("coreml", OK, f"coremltools {report['version']}, {report['predicts']}", details=report)


def nvidia() -> str:
    """The machine's NVIDIA GPUs with driver and memory, as nvidia-smi names them; "" where there are none."""
    lines = host.output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    return "; ".join(line.strip() for line in lines.splitlines() if line.strip())


def _failed(name: str, report: dict[str, Any]) -> Check:
    """A framework that is not installed is a note; one that is there and fails is bad."""
    error, version = report["error"], report.get("version", "")
    if error.startswith("ModuleNotFoundError") and "version" not in report:
        return Check(name, NOTE, f"not installed ({error.partition(': ')[2]})", _REINSTALL[name], report)
    remedy = _REINSTALL[name].replace("pip install", "pip install --force-reinstall", 1)
    if _MIXED in error:
        error += ": torch and torchvision are of different builds"
        remedy = "install both from one index: pip install --force-reinstall torch torchvision"
    if error.startswith("BackendUnavailable"):
        remedy = "as the line says"
    step = {"device": "cannot compute", "engine": "cannot be opened", "prediction": "cannot predict"}
    what = step.get(str(report.get("step", "")), "cannot be imported")
    return Check(name, BAD, f"{name} {version}".strip() + f" {what}: {error}", remedy, report)
