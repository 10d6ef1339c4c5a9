"""Tiny networks of every architecture of the registry that torch has, converted to both formats and compared.

    make conversions
    python -m tests.convert.walk --names 'vit_*'

Depth and width are cut down (`tests.parity.kinds`), so that many architectures become one network: that is walked once.
Results are kept in `build/conversions.jsonl`, so that a stopped walk can be resumed.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from convert.coreml import mlpackage
from convert.graph import torch_network
from convert.onnx import export
from infer.runtimes import mil_reference as reference
from infer.runtimes import onnx as onnx_predictor
from models import registry
from models.card import Card
from tests.parity import drawn, kinds

KEPT = Path(__file__).parents[2] / "build" / "conversions.jsonl"
IMAGES = 8
# In multiples of torch's own rounding error on the same images, as `--verify` judges fp32.
FLOORS = 5
# A network of a few layers may round better than this by luck: four units in the last place of its largest logit.
LEAST = 4 * float(np.finfo(np.float32).eps)
_FORMATS: dict[str, Any] = {
    "onnx": (export.write, onnx_predictor.open, ".onnx"),
    "coreml": (mlpackage.write, reference.open, ".mlpackage"),
}


class Row(NamedTuple):
    """The largest differences of logits from torch in fp32, and that of torch from itself in float64."""

    arch: str
    gaps: dict[str, float]
    floor: float

    @property
    def within(self) -> bool:
        """Whether the artefacts are as near to torch as `--verify` wants."""
        return max(self.gaps.values()) <= FLOORS * self.floor


def networks(by_kind: bool = False) -> dict[str, list[str]]:
    """One architecture for each tiny network, the smallest, and all that it stands for; the smallest comes first.

    `by_kind`: for each kind, whose networks differ in numbers alone.
    """
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for arch in registry.names():
        if registry.engines(registry.get(arch))["torch"]:
            continue
        with pytest.MonkeyPatch.context() as patch:
            spec = kinds.tiny(arch, patch)
        args = kinds._shape(dict(spec.args)) if by_kind else [spec.args, spec.preprocessing.size]
        key = json.dumps([spec.family, spec.cls, args], sort_keys=True, default=str)
        found[key].append((registry.get(arch).parameters, arch))
    return {members[0][1]: sorted(arch for _, arch in members) for members in sorted(map(sorted, found.values()))}


def compare(arch: str, formats: tuple[str, ...] = ("onnx", "coreml")) -> Row:
    """Convert the tiny network of `arch`, run the files and compare."""
    with pytest.MonkeyPatch.context() as patch:
        spec = kinds.tiny(arch, patch)
        model = drawn.torch_network(spec, drawn.weights(spec))
    card = Card(arch, tuple("abcde"), spec.preprocessing, dict(spec.options), "torch")
    network = torch_network.Classifier(model, spec.preprocessing).eval().requires_grad_(False)
    images = drawn.images(spec, IMAGES)
    single, double = torch_network.reference(network, lambda: [(images,)])
    floor = max(float(np.abs(single - double).max()), LEAST * float(np.abs(single).max()))
    gaps = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in formats:
            write, opened, suffix = _FORMATS[name]
            file = write(network, card, Path(folder) / f"x{suffix}")
            gaps[name] = float(np.abs(opened(file).logits(images) - single).max())
    return Row(arch, gaps, floor)


def main(argv: Sequence[str] | None = None) -> int:
    """Walk the networks that are asked for and were not within the bounds before; 1 where one fails."""
    parser = argparse.ArgumentParser(description="Every architecture to ONNX and Core ML, compared with torch.")
    parser.add_argument("--names", nargs="+", default=["*"], help="shell patterns of architectures (default: all)")
    arguments = parser.parse_args(argv)
    groups = networks()
    results = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    rows = {row["arch"]: row for row in results}
    for arch, members in groups.items():
        asked = any(fnmatch.fnmatch(name, pattern) for name in members for pattern in arguments.names)
        if asked and rows.get(arch, {}).get("verdict") != "ok":
            rows[arch] = {**_row(arch), "members": members}
            print(f"{arch} (for {len(members)}): {rows[arch]['verdict']}", flush=True)
            KEPT.parent.mkdir(exist_ok=True)
            with KEPT.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(rows[arch]) + "\n")
    done = [rows[arch] for arch in groups if arch in rows]
    failed = [row for row in done if row["verdict"] != "ok"]
    covered, total = sum(len(groups[row["arch"]]) for row in done), sum(map(len, groups.values()))
    print(f"{len(done)} of {len(groups)} networks, {covered} of {total} architectures; {len(failed)} fail")
    return int(bool(failed))


def _row(arch: str) -> dict[str, Any]:
    try:
        row = compare(arch)
    except Exception as error:  # of whatever kind: it is this network's row
        return {"arch": arch, "verdict": f"{type(error).__name__}: {error}"}
    gaps = ", ".join(f"{name} {gap:.1e}" for name, gap in row.gaps.items())
    return {**row._asdict(), "verdict": "ok" if row.within else f"{gaps}, torch's own error {row.floor:.1e}"}


if __name__ == "__main__":
    raise SystemExit(main())
