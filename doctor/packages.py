"""Installed packages against what pyproject.toml asks for, and combinations that are known to be wrong."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from doctor import probe
from doctor.check import BAD, NOTE, OK, Check

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

_PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
_MODULES = {"opencv-python-headless": "cv2", "pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
# Why versions that pyproject.toml refuses are bad, where that is more than their age.
_REASONS = {
    "mlx": "wrong Metal gradients of strided grouped convolutions, and biased BatchNorm variance",
    "opencv-python-headless": "4.14 and 5.0 are reported to crash on arm64 macOS (opencv#29794)",
}
_OPENCV = ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")


class _Requirement(NamedTuple):
    name: str
    versions: SpecifierSet | None


def required() -> Iterator[Check]:
    """The packages that every command needs: their versions, and whether they can be imported."""
    lines, versions = _project()["dependencies"], installed()
    yield from _outside(lines, versions, needed=True)
    present = [wanted.name for wanted in _requirements(lines) if wanted.name in versions]
    modules = {name: _MODULES.get(name, name.replace("-", "_")) for name in present}
    if not probe.import_error(list(modules.values())):
        details = {name: versions[name] for name in modules}
        yield Check("packages", OK, f"all {len(modules)} can be imported", details=details)
        return
    for name, module in modules.items():
        if error := probe.import_error([module]):
            remedy = f"pip install --force-reinstall --no-deps {name}=={versions[name]}"
            yield Check(name, BAD, f"{versions[name]} cannot be imported: {error}", remedy)


def extras() -> Iterator[Check]:
    """Optional packages: which extras are complete, and versions that are refused."""
    versions, lines_of = installed(), _project()["optional-dependencies"]
    complete: list[str] = []
    absent: list[str] = []
    present: dict[str, str] = {}
    for extra, lines in lines_of.items():
        names = [wanted.name for wanted in _requirements(lines)]
        present |= {name: versions[name] for name in names if name in versions}
        (complete if all(name in versions for name in names) else absent).append(extra)
    lines = [line for lines in lines_of.values() for line in lines]
    yield from _outside(list(dict.fromkeys(lines)), versions, needed=False)
    remedy = f'where you need one: pip install -e ".[{absent[0]}]"' if absent else ""
    text = f"installed: {', '.join(complete) or 'none'}; not installed: {', '.join(absent) or 'none'}"
    yield Check("extras", OK, text, remedy, present)


def combinations() -> Iterator[Check]:
    """Packages that spoil each other."""
    versions = installed()
    doubled = [name for name in _OPENCV if name in versions]
    if doubled and "opencv-python-headless" in versions:
        what = f"{' and '.join(doubled)} beside opencv-python-headless: all write the module cv2"
        pin = next(line for line in _project()["dependencies"] if line.startswith("opencv"))
        remedy = f"pip uninstall -y {' '.join(doubled)} opencv-python-headless; pip install {pin}"
        yield Check("opencv", BAD, what, remedy)
    if {"onnxruntime", "onnxruntime-gpu"} <= versions.keys():
        remedy = "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one that you want"
        yield Check("onnxruntime", BAD, "onnxruntime beside onnxruntime-gpu: both are the module onnxruntime", remedy)
    torch, vision = (versions.get(name, "") for name in ("torch", "torchvision"))
    builds = [version.partition("+")[2] for version in (torch, vision)]
    if torch and vision and "cpu" in builds and builds[0] != builds[1] and sys.platform != "darwin":
        what = f"torch {torch} beside torchvision {vision}: a CPU and a CUDA build, torchvision's operators are missing"
        remedy = "install both from one index: pip install --force-reinstall torch torchvision"
        yield Check("torchvision", BAD, what, remedy)
    has_wheel = sys.platform == "darwin" or (sys.platform == "linux" and platform.machine() == "x86_64")
    if "coremltools" not in versions and not has_wheel:
        text = f"coremltools has no wheel for {sys.platform} {platform.machine()}, only for macOS and Linux x86-64"
        yield Check("coremltools", NOTE, text, "convert to Core ML on one of those; ONNX works here")


def installed() -> dict[str, str]:
    """Every installed distribution and its version, by lower-case name with dashes."""
    versions: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # a broken installation leaves folders without one
            versions.setdefault(_name(name), distribution.version)
    return versions


def _outside(lines: Sequence[str], versions: Mapping[str, str], needed: bool) -> Iterator[Check]:
    """A line for each requirement that is not met; of optional packages those that are installed."""
    for wanted in _requirements(lines):
        version = versions.get(wanted.name)
        if version is None and needed:
            yield Check(wanted.name, BAD, "not installed", "make install, or pip install -e .")
        elif version is not None and wanted.versions and not wanted.versions.contains(version, prereleases=True):
            reason = f" ({_REASONS[wanted.name]})" if wanted.name in _REASONS else ""
            plain = f"{wanted.name}{wanted.versions}"
            yield Check(wanted.name, BAD, f"{version}, where {plain} is needed{reason}", f"pip install '{plain}'")


def _requirements(lines: Sequence[str]) -> list[_Requirement]:
    """The requirements that apply to this platform; names alone where the package packaging is missing."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return [_Requirement(_name(re.split(r"[^\w-]", line)[0]), None) for line in lines]
    parsed = [Requirement(line) for line in lines]
    return [_Requirement(_name(r.name), r.specifier) for r in parsed if r.marker is None or r.marker.evaluate()]


def _name(text: str) -> str:
    return text.lower().replace("_", "-")


def _project() -> dict[str, Any]:
    import tomllib  # from Python 3.11 on: an older one gets its own line

    return dict(tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"])
