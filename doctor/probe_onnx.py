"""Run as a process of its own by the doctor: what ONNX Runtime says of itself."""

from __future__ import annotations

from doctor.probe import steps


def _runtime() -> dict[str, object]:
    import onnxruntime

    return {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}


def _writers() -> dict[str, object]:
    import onnx
    import onnxscript

    return {"onnx": onnx.__version__, "onnxscript": onnxscript.__version__}


if __name__ == "__main__":
    steps([_runtime, _writers])
