"""Every architecture, cut down, to ONNX and Core ML, executed and compared with torch: all of `tests.convert.walk`.

    make conversions
    python -m benchmarks.conversions --names 'vit_*'

What was measured is kept in `build/conversions.jsonl`, so that a walk that was stopped is resumed. The exit code is 1
where a network does not convert or answers differently.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KEPT = Path(__file__).parents[1] / "build" / "conversions.jsonl"


def main(argv: Sequence[str] | None = None) -> int:
    """Walk what is asked for and was not within the bounds before."""
    parser = argparse.ArgumentParser(description="Every architecture to ONNX and Core ML, compared with torch.")
    parser.add_argument("--names", nargs="+", default=["*"], help="shell patterns of architectures (default: all)")
    arguments = parser.parse_args(argv)
    from tests.convert import walk

    networks = walk.networks()
    kept = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    rows = {row["arch"]: row for row in kept}
    for arch, members in networks.items():
        asked = any(fnmatch.fnmatch(name, pattern) for name in members for pattern in arguments.names)
        if asked and rows.get(arch, {}).get("verdict") != "ok":
            rows[arch] = {**_measured(arch), "members": members}
            print(f"{arch} (for {len(members)}): {rows[arch]['verdict']}", flush=True)
            KEPT.parent.mkdir(exist_ok=True)
            with KEPT.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(rows[arch]) + "\n")
    done = [rows[arch] for arch in networks if arch in rows]
    failed = [row for row in done if row["verdict"] != "ok"]
    covered = sum(len(networks[row["arch"]]) for row in done)
    total = sum(map(len, networks.values()))
    print(f"{len(done)} of {len(networks)} networks, {covered} of {total} architectures; {len(failed)} fail")
    return int(bool(failed))


def _measured(arch: str) -> dict[str, Any]:
    from tests.convert import walk

    try:
        row = walk.compare(arch)
    except Exception as error:  # of whatever kind: it is this network's row
        return {"arch": arch, "verdict": f"{type(error).__name__}: {error}"}
    told = ", ".join(f"{name} {gap:.1e}" for name, gap in row.gaps.items()) + f", torch's own error {row.floor:.1e}"
    return {**row._asdict(), "verdict": "ok" if row.within else told}


if __name__ == "__main__":
    raise SystemExit(main())
