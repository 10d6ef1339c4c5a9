"""Run as a process of its own by the doctor: what coremltools says of itself."""

from __future__ import annotations

import sys

from doctor.probe import steps


def _versions() -> dict[str, object]:
    import coremltools

    return {"version": coremltools.__version__}


def _prediction() -> dict[str, object]:
    if sys.platform != "darwin":
        return {"predicts": "by the reference evaluator: Core ML itself runs on Apple systems only"}
    import coremltools.libcoremlpython

    return {"predicts": f"by Core ML ({coremltools.libcoremlpython.__name__})"}


if __name__ == "__main__":
    steps([_versions, _prediction])
