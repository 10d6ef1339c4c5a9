"""What the comparisons share: options, the form of a result, arms in turn, photographs, processes of their own."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import shlex
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from backends.contract import Weights
from config.errors import ConfigError
from config.program.parser import Parser
from data.cores import cores
from models import registry
from models.card import Card
from models.registry import ModelSpec

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
PHOTOS = DATA / "photos.tar"
Result = dict[str, Any]  # from `result`
Option = tuple[tuple[str, ...], dict[str, Any]]  # from `option`
Measure = Callable[[argparse.Namespace, Path], Result]  # with an empty folder, which is removed afterwards

COMPARISONS: dict[str, tuple[Measure, tuple[Option, ...]]] = {}  # of the files that are imported


def comparison(name: str, *options: Option) -> Callable[[Measure], Measure]:
    """Make a function what `python -m benchmarks NAME` runs."""

    def add(measure: Measure) -> Measure:
        COMPARISONS[name] = measure, options
        return measure

    return add


def option(*flags: str, **keywords: Any) -> Option:
    """The arguments of `argparse.ArgumentParser.add_argument`."""
    return flags, keywords


PHOTOGRAPHS = option("--data", type=Path, default=PHOTOS, help="a tar of photographs, or a folder")


def parser(doc: str | None, *options: Option) -> Parser:
    """A parser of the options and of `--json`, `doc` being its description as it stands."""
    prog = f"python -m benchmarks {Path(sys.argv[0]).stem}"
    new = Parser(prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flags, more in options:
        new.add_argument(*flags, **more)
    new.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    return new


def result(figures: dict[str, Any], n: int, *packages: str, missed: str = "") -> Result:
    """The form of every result: the command, when and on what it ran, `n` repetitions, and the figures.

    `missed` says which aim was missed: then the exit code is 1.
    """
    words = [Path(sys.argv[0]).stem, *(word for word in sys.argv[1:] if word != "--json")]
    return {
        "command": f"python -m benchmarks {shlex.join(words)}",
        "date": date.today().isoformat(),
        "machine": f"{platform.platform()}, {cores()} cores",
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in packages},
        "n": n,
        "missed": missed,
        "figures": figures,
    }


def markdown(result: Result) -> str:
    """The command, the machine, a row for each figure, and below what is quoted."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    head = f"{result['date']}, {result['machine']}, load {result['load']}, {versions}; n = {result['n']}"
    rows = [(name, value) for name, value in flat(result["figures"]) if value not in (None, [])]
    table = [f"| {name} | {value} |" for name, value in rows if not _is_text(value)]
    quoted = [line for _, value in rows if _is_text(value) for line in value]
    lines = [f"`{result['command']}`", "", head, "", "| figure | value |", "|---|---|", *table, ""]
    lines += [f"Missed: {result['missed']}", ""] if result.get("missed") else []
    return "\n".join([*lines, "```text", *quoted, "```", ""] if quoted else lines)


def _is_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(line, str) for line in value)


def flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested figures as (dotted name, value)."""
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in flat(inner, f"{prefix}.{key}" if prefix else str(key))]
    return [(prefix, value)]


def rounded(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")


def spread(values: list[float]) -> float:
    """The greatest over the least."""
    return round(max(values) / min(values), 3)


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of a call."""
    start = clock()
    call()
    return clock() - start


def in_turn(
    arms: dict[str, Callable[[], float]], turns: int, before: Callable[[], object] | None = None, warm_up: bool = True
) -> dict[str, list[float]]:
    """What each arm returns in each turn, in the order of the arms; `before` runs ahead of each.

    A turn that warms up goes before, and does not count.
    """
    values: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(0 if warm_up else 1, turns + 1):
        for name, arm in arms.items():
            if before:
                before()
            value = arm()
            if turn:
                values[name].append(value)
            print(f"{name}: {value:.4g} ({f'turn {turn} of {turns}' if turn else 'warm-up'})", file=sys.stderr)
    return values


def existing(data: Path) -> Path:
    """The path, or `ConfigError` where nothing is there."""
    if not data.exists():
        raise ConfigError(f"{data}: does not exist; give --data a tar or a folder of photographs")
    return data


def unpacked(archive: Path, folder: Path) -> Path:
    """The folder, with the contents of a tar in it."""
    with tarfile.open(existing(archive)) as packed:
        packed.extractall(folder, filter="data")
    return folder


def photographs(data: Path, count: int, folder: Path) -> list[Path]:
    """`count` colour JPEG files in `folder`, copies of the photographs in `data`, a tar or a folder; 0: each once."""
    from PIL import Image

    # Not among the class folders.
    source = data if data.is_dir() else unpacked(data, folder.parent.with_name(folder.parent.name + "_source"))
    files = sorted(file for file in source.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    files = [file for file in files if Image.open(file).mode == "RGB"]
    if not files:
        raise ConfigError(f"{data}: holds no colour JPEG files; give --data a tar or a folder of photographs")
    folder.mkdir(parents=True)
    for number in range(count or len(files)):
        (folder / f"{number:06}.jpg").write_bytes(files[number % len(files)].read_bytes())
    return sorted(folder.iterdir())


def fresh(model: str, size: int | None = None, classes: int = 10, seed: int = 0) -> tuple[ModelSpec, Card, Weights]:
    """A network of torch's with fresh weights, which `seed` draws; `size` in pixels, None being the network's own."""
    import torch

    from backends.torch import model as networks

    torch.manual_seed(seed)
    spec = registry.get(model, num_classes=classes, image_size=size)
    card = Card(model, tuple(f"class {k}" for k in range(classes)), spec.preprocessing, dict(spec.options), "torch")
    return spec, card, networks.to_arrays(networks.canonical_tensors(networks.build(spec)))


class Finished(NamedTuple):
    """A command that ran in a process of its own; memory is the peak, with and without what is mapped from files."""

    output: str
    seconds: float
    cpu_seconds: float
    peak_gib: float
    anonymous_gib: float


def command(*words: str, **env: str) -> Finished:
    """Run `python WORDS` from the checkout and watch it; a failure ends this process too."""
    before, start, peak, anonymous = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0, 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env={**os.environ, **env}, stdout=output)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                memory = watched.memory_info()
                peak, anonymous = max(peak, memory.rss), max(anonymous, memory.rss - getattr(memory, "shared", 0))
            time.sleep(0.02)
        taken, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if process.returncode:
            raise SystemExit(process.returncode)
        output.seek(0)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Finished(output.read(), taken, cpu, round(peak / 2**30, 2), round(anonymous / 2**30, 2))


class Peer:
    """`make(*arguments)` in a new process, and calls of its methods; a context manager that ends the process.

    For another library's arm, with memory as its users have it while ours keeps what it frees (see `config.heap`), and
    for arms that share nothing but the machine. It is ready before any call is timed.
    """

    def __init__(self, make: Callable[..., object], *arguments: object):
        fresh, usual = multiprocessing.get_context("spawn"), multiprocessing.get_start_method()
        self._process = ProcessPoolExecutor(1, fresh, initializer=_set_up, initargs=(usual, make, arguments))
        self._process.submit(int).result()

    def __call__(self, method: str, *arguments: object) -> Any:
        """Call the method there and return or raise what it does."""
        return self.start(method, *arguments).result()

    def start(self, method: str, *arguments: object) -> Future[Any]:
        """Begin a call, so that several processes may work at a time."""
        return self._process.submit(_call, method, arguments)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()


def together(method: str, peers: Iterable[Peer], *arguments: object) -> list[Any]:
    """What the method of each peer returns, all working at a time."""
    return [call.result() for call in [peer.start(method, *arguments) for peer in peers]]


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


_peer: Any = None


def _set_up(usual: str, make: Callable[..., object], arguments: tuple[object, ...]) -> None:
    global _peer
    multiprocessing.set_start_method(usual, force=True)  # a loader's workers would be spawned too, which is slow
    _peer = make(*arguments)


def _call(method: str, arguments: tuple[object, ...]) -> Any:
    return getattr(_peer, method)(*arguments)
