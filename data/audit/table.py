"""`audit.csv`: each finding with what is proposed; people edit it, `data.audit.actions` reads it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from config.places import atomic_write
from data import csvfile
from data.audit.findings import Finding

HEADER = ("ID", "split", "target", "finding", "detail", "related", "action", "value")
NAME = "audit.csv"
_MOST_RELATED = 20


def encode(findings: Sequence[Finding]) -> bytes:
    """The table as bytes; related IDs are separated by blanks and bars."""
    return csvfile.encode(HEADER, (row(finding) for finding in findings))


def write(folder: Path, findings: Sequence[Finding], earlier: Sequence[Finding] = ()) -> Path:
    """Write `audit.csv` into `folder`; where.

    One that people may have edited is never replaced: unless it is what `found` or `earlier` gave, the new one becomes
    `audit_2.csv` and so on.
    """
    content, ours = encode(findings), (encode(findings), encode(earlier))
    folder.mkdir(parents=True, exist_ok=True)
    path, number = folder / NAME, 1
    while path.exists() and path.read_bytes() not in ours:
        number += 1
        path = folder / f"{Path(NAME).stem}_{number}.csv"
    atomic_write(path, content)
    return path


def row(finding: Finding) -> tuple[str, ...]:
    """A finding as the columns of `HEADER`."""
    more = len(finding.related) - _MOST_RELATED
    related = " | ".join(finding.related[:_MOST_RELATED]) + (f" and {more} more" if more > 0 else "")
    image = finding.id, finding.split, finding.target
    return *image, finding.kind, finding.detail, related, finding.action, finding.value
