"""`python -m data audit`: look at a data set, say what was found, write `audit.csv` and `audit.html`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from config.sections.data import Data
from config.text import counted, duration
from data.audit import actions, page, table
from data.audit.audit import Audit, audit, test_images
from data.audit.findings import KINDS, Finding, counts
from data.progress_bar import bar


def run(data: Data, out: Path, least: int) -> Audit:
    """Audit the data set of the settings, print a summary and write both files into `out`."""
    applied = actions.load(data)
    test = test_images(data)
    with bar("audit", len(applied.table.ids) + len(test.ids if test else [])) as progress:
        result = audit(applied.table, test, data, least, progress=progress)
    print(summary(result))
    applied_text = applied.summary() if data.audit_actions else ""
    if applied_text:
        print(f"applied from {data.audit_actions}: {applied_text}")
    findings = table.write(out, result.findings)
    print(f"wrote {findings} and {page.write(out, data.root, result, result.findings, applied_text)}")
    return result


def summary(audited: Audit) -> str:
    """A line for each kind of finding, and how long it took."""
    images, cached = counted(len(audited.paths), "image"), len(audited.paths) - audited.looked
    last = f"audited {images} in {duration(audited.seconds)} ({cached} of them unchanged since the last time)"
    return "\n".join([*listed(audited.findings), last])


def listed(findings: Sequence[Finding]) -> Iterator[str]:
    """A line for each kind, the gravest first, with an example."""
    number = counts(list(findings))
    if not number:
        yield "nothing odd was found"
    for kind, count in number.items():
        first = next(finding for finding in findings if finding.kind == kind)
        example = f"{first.id}: {first.detail}" if first.id else first.detail
        yield f"{count:6d} {kind.replace('_', ' ')} ({KINDS[kind]}), such as {example}"
