"""The page of `benchmarks.gpu` from its JSON lines, as many of them as there are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

_ENDED = ("skipped", "stopped", "failed")
Line = dict[str, Any]


def write(lines: Path) -> Path:
    """Write the Markdown page beside the file of lines and return its path; a line that was cut off is left out."""
    found = []
    for line in lines.read_text().splitlines():
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    page = lines.with_suffix(".md")
    page.write_text(text(found))
    return page


def text(lines: list[Line]) -> str:
    """The page, Markdown."""
    machine = next((line for line in lines if line["arm"] == "machine"), {})
    parts = [_head(machine, lines)]
    parts += _table("Training steps", [line for line in lines if line["arm"].startswith("train ")], _TRAIN)
    for title, arm, columns in _OTHERS:
        parts += _table(title, [line for line in lines if line["arm"] == arm], columns)
    ended = [f"- {line['arm']}: {kind}: {line[kind]}" for line in lines for kind in _ENDED if kind in line]
    parts += ["\n## Not measured, or in part\n", *ended, ""] if ended else []
    return "\n".join(parts)


def _head(machine: Line, lines: list[Line]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine.get("versions", {}).items())
    known = ("capability", "memory_gib", "cuda", "cudnn", "precision", "cores", "peak_tflops")
    facts = ", ".join(f"{name} {machine[name]}" for name in known if machine.get(name) is not None)
    seconds = sum(line["seconds"] for line in lines)
    on_gpu = str(machine.get("device", "cuda")).startswith("cuda")
    return (
        f"# Benchmarks: {machine.get('name', 'unknown device')}\n\n{machine.get('date', '')}, {facts}, {versions}; "
        f"{seconds:.0f} s in all. Written by `make bench-gpu`."
        f"{'' if on_gpu else ' A dry run on the CPU: no figure means anything.'}\n\n"
        "Best of the turns, which alternate between the sides; `spread` is how far the slowest one is below. `ratio` is"
        " Tandem over timm. MFU: three times the operations of the forward pass over the card's dense bf16 peak, empty "
        "where that is not in the table of `benchmarks/torch_cases.py`."
    )


def _table(title: str, lines: list[Line], columns: dict[str, str]) -> Iterable[str]:
    rows = [line for line in lines if _at(line, "images_per_second") is not None]
    if not rows:
        return []
    head = ["", f"## {title}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return head + [f"| {' | '.join(_cell(_at(line, path)) for path in columns.values())} |" for line in rows]


def _at(line: Line, path: str) -> Any:
    """The value at a dotted path, None where there is none."""
    value: Any = line
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


_NETWORK = {"model": "model", "pixels": "size", "batch": "batch"}
_TRAIN = {
    **_NETWORK,
    "precision": "precision",
    "compiled": "compiled",
    "Tandem, images/s": "images_per_second.tandem",
    "timm, images/s": "images_per_second.timm",
    "ratio": "ratio",
    "spread": "spread",
    "MFU": "mfu.tandem",
    "timm's MFU": "mfu.timm",
    "peak GiB": "peak_gib",
    "timm's peak GiB": "timm_peak_gib",
    "first update, s": "first_update_s",
}
_RATE = {"images/s": "images_per_second"}
_OTHERS = (
    ("The loader alone, from JPEG files to the device", "loader", {"workers": "workers", **_RATE, "ratio": "ratio"}),
    (
        "The step fed by the loader",
        "loader and step",
        {**_NETWORK, "processes": "processes", **_RATE, "ratio": "ratio", "time, step alone = 1": "loader_over_step"},
    ),
    ("Inference", "inference", {**_NETWORK, **_RATE}),
    (
        "ONNX Runtime",
        "onnx",
        {**_NETWORK, "providers": "providers", **_RATE, "largest difference": "largest_difference_to_torch_fp32"},
    ),
    (
        "`train.deterministic`",
        "deterministic",
        {**_NETWORK, **_RATE, "usual over deterministic": "usual_over_deterministic", "same bits": "same_bits"},
    ),
    ("MLX's CUDA back end", "mlx", {**_NETWORK, "precision": "precision", **_RATE, "peak GiB": "peak_gib"}),
)
