"""Evaluation logits of every architecture that MLX runs, at its real size: MLX against timm, and torch against itself.

    make parity
    python -m tests.parity.walk --names 'convnext_*' resnet18 --max_parameters 30

Both engines get the same random weights that hide nothing (`tests.parity.drawn`), two images, fp32 on the CPU. The
floor is torch in fp32 against float64 and against channels_last, the larger. What was measured is kept in
`build/parity.jsonl`, so that a stopped run can be resumed, and `docs/engineering/parity.md` is written from all of it.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from models import registry
from models.registry import ModelSpec

ROOT = Path(__file__).parents[2]
KEPT, PAGE = ROOT / "build" / "parity.jsonl", ROOT / "docs" / "engineering" / "parity.md"
BOUND = 1e-5
REFERENCE = {
    "tf_efficientnetv2_l.in21k_ft_in1k": 480,
    "convnext_large.fb_in22k_ft_in1k_384": 384,
    "swin_large_patch4_window12_384.ms_in22k_ft_in1k": 384,
    "swin_base_patch4_window12_384": 384,
    "tf_efficientnet_b7.ns_jft_in1k": 600,
    "convnext_base.fb_in22k_ft_in1k": 224,
    "convnext_base_384": 384,
    "resnet152d.ra2_in1k": 256,
    "vit_base_patch16_224.augreg_in21k_ft_in1k": 224,
    "efficientnet_b4.ra2_in1k": 320,
    "tf_efficientnetv2_b3": 240,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked for and not kept yet; the exit code is 1 when an architecture is out of bounds."""
    parser = argparse.ArgumentParser(description="MLX against timm: logits of every architecture at its real size.")
    parser.add_argument("--names", nargs="+", default=["*"], help="shell patterns of architectures (default: all)")
    parser.add_argument("--reference", action="store_true", help="only the eleven models of the reference list")
    parser.add_argument("--max_parameters", type=float, default=float("inf"), help="in millions")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no network after this long")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    arguments = parser.parse_args(argv)
    wanted = list(_wanted(arguments))
    if not wanted:
        parser.error(f"no architecture that both engines run matches {' '.join(arguments.names)}")
    rows = {row["name"]: row for row in _kept()}
    end = time.monotonic() + 60 * arguments.minutes
    for name, size in wanted:
        if name not in rows and time.monotonic() < end:
            rows[name] = measure(name, size)
            _keep(rows[name])
            if not arguments.json:
                print(line(rows[name]), flush=True)
    write(list(rows.values()))
    if arguments.json:
        print(json.dumps({"rows": list(rows.values())}))
    return int(any(verdict(row) == "out of bounds" for row in rows.values()))


def measure(name: str, size: int | None) -> dict[str, Any]:
    """One row: the gap and the floor, both as max |difference| / std of the logits."""
    from tests.parity import harness

    spec = registry.get(name, image_size=size)
    began = time.monotonic()
    mlx, floor, why = float("nan"), float("nan"), ""
    try:
        gap = harness.eval_logits(spec)
        mlx, floor = gap.mlx, gap.floor
    except AssertionError as error:  # the drawn weights say too little: a comparison would prove nothing
        why = str(error).partition(": ")[2]
    return {
        "name": name,
        "family": spec.family,
        "parameters": spec.parameters,
        "size": spec.preprocessing.size,
        "mlx": mlx,
        "floor": floor,
        "why": why,
        "seconds": round(time.monotonic() - began, 1),
        "date": date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {package: metadata.version(package) for package in ("mlx", "torch", "timm")},
    }


def verdict(row: dict[str, Any]) -> str:
    """Within 1e-5 of the logits' standard deviation; or within three floors, where torch itself is no better."""
    if row.get("why"):
        return f"not measured: {row['why']}"
    if row["mlx"] <= BOUND:
        return "ok"
    return "ok, as torch from itself" if row["mlx"] <= 3 * row["floor"] else "out of bounds"


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    cells = (
        row["name"],
        row["family"],
        f"{row['parameters'] / 1e6:.1f}",
        str(row["size"]),
        f"{row['mlx']:.1e}",
        f"{row['floor']:.1e}",
        verdict(row),
    )
    return f"| {' | '.join(cells)} |"


def write(rows: list[dict[str, Any]]) -> None:
    """`docs/engineering/parity.md` from all rows measured so far, the reference list first."""
    there = {spec.arch for spec in _runnable()}
    measured = {row["name"].partition(".")[0] for row in rows} & there
    by_name = {row["name"]: row for row in rows}
    ordered = sorted(rows, key=lambda row: (row["family"], row["parameters"], row["name"]))
    lines = [
        "# MLX against timm",
        "",
        "Evaluation logits, fp32 on the CPU, the same random weights on both sides, n = 2 images: the largest",
        "difference over the standard deviation of the logits. The floor is torch against itself (float64,",
        "channels_last). The bound is 1e-5, or three floors where torch itself is no better. Written by `make parity`.",
        "",
        *sorted({f"- {row['date']}: {row['machine']}, {_versions(row)}" for row in rows}),
        "",
        "## The reference list",
        "",
        *_table([by_name[name] for name in REFERENCE if name in by_name]),
        "",
        "## All",
        "",
        f"Measured: {len(rows)} models, {len(measured)} of the {len(there)} architectures that MLX runs.",
        "The others are held to timm by name and shape of every parameter, and by their family's tests.",
        "",
        *_table(ordered),
    ]
    PAGE.write_text("\n".join(lines) + "\n")


def _table(rows: list[dict[str, Any]]) -> list[str]:
    head = ["| model | family | million parameters | pixels | MLX | floor | verdict |", "|---|---|---|---|---|---|---|"]
    return head + [line(row) for row in rows]


def _wanted(arguments: argparse.Namespace) -> Iterator[tuple[str, int | None]]:
    """Names and sizes, the reference list first, then small networks before large ones."""

    def asked(name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in arguments.names)

    named: list[tuple[str, int | None]] = []
    named += [(name, size) for name, size in REFERENCE.items() if arguments.reference or asked(name)]
    if not arguments.reference:
        chosen = [spec for spec in _runnable() if asked(spec.arch)]
        named += [(spec.arch, None) for spec in sorted(chosen, key=lambda s: s.parameters * s.preprocessing.size**2)]
    for name, size in named:
        if registry.get(name).parameters <= arguments.max_parameters * 1e6:
            yield name, size


def _runnable() -> list[ModelSpec]:
    """The architectures that both timm and MLX have."""
    specs = (registry.get(arch) for arch in registry.names())
    return [spec for spec in specs if not any(registry.engines(spec).values())]


def _versions(row: dict[str, Any]) -> str:
    return ", ".join(f"{package} {version}" for package, version in row["versions"].items())


def _kept() -> list[dict[str, Any]]:
    return [json.loads(text) for text in KEPT.read_text().splitlines()] if KEPT.exists() else []


def _keep(row: dict[str, Any]) -> None:
    KEPT.parent.mkdir(exist_ok=True)
    with KEPT.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
