"""`audit.html`: the findings with thumbnails, to be filtered, sorted and exported; one file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from config.errors import DataError
from config.places import atomic_write
from config.text import counted
from data import resize
from data.audit import table
from data.audit.audit import Audit
from data.audit.findings import KINDS, Finding, counts
from data.augment import geometry
from data.decode.image import decode
from data.pixels import data_uri

NAME = "audit.html"
_THUMBNAIL, _PER_KIND, _BESIDE = 96, 60, 3


def write(
    folder: Path, root: Path, audit: Audit, findings: Sequence[Finding], applied: str = "", right: float | None = None
) -> Path:
    """Write the page about `found`, the findings of `audit` and perhaps more, into `folder`; where.

    `applied` says what was done about earlier findings; `right` is the share of images whose label the model that
    speaks of labels gave too.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["counted"] = counted
    sizes = np.bincount(audit.groups)
    page = environment.get_template(NAME).render(
        root=root.resolve().name or str(root),
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
        images=len(audit.paths),
        tests=sum(split == "test" for split, _ in audit.paths),
        grouped=int(sizes[sizes > 1].sum()),
        applied=applied,
        right=right,
        measures=audit.measures,
        rows=rows(findings),
        kinds=[{"kind": kind, "count": n, "means": KINDS[kind]} for kind, n in counts(list(findings)).items()],
        pictures=thumbnails(findings, audit.paths),
    )
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / NAME, page.encode())
    return folder / NAME


def rows(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Each finding as the columns of `audit.csv`, with the keys of its thumbnails: its own `key`, `keys` of others."""
    return [
        {
            **dict(zip(table.HEADER, table.row(finding), strict=True)),
            "key": f"{finding.split}/{finding.id}",
            "keys": [f"{split}/{name}" for split, name in _beside(finding)],
        }
        for finding in findings
    ]


def thumbnails(findings: Sequence[Finding], paths: Mapping[tuple[str, str], Path]) -> dict[str, str]:
    """Small pictures as data URLs by `split/ID`, for the first findings of each kind; none of what cannot be read."""
    wanted: dict[tuple[str, str], None] = {}
    count_of: dict[str, int] = {}
    for finding in findings:
        count_of[finding.kind] = count_of.get(finding.kind, 0) + 1
        if finding.id and count_of[finding.kind] <= _PER_KIND:
            wanted |= dict.fromkeys([(finding.split, finding.id), *_beside(finding)])
    images = {f"{split}/{name}": thumbnail(paths[split, name]) for split, name in wanted if (split, name) in paths}
    return {key: url for key, url in images.items() if url}


def thumbnail(path: Path) -> str:
    """A JPEG of the image at most 96 pixels wide and high as a data URL; "" where it cannot be read."""
    try:
        image = decode(path)
    except DataError:
        return ""
    image = geometry.reduced(image, 2 * _THUMBNAIL)
    if max(image.shape[:2]) > _THUMBNAIL:
        image = resize.shrink_to_fit(image, _THUMBNAIL)
    return data_uri(image)


def _beside(finding: Finding) -> list[tuple[str, str]]:
    """The images shown beside a finding's own: those of a leak are test images."""
    split = "test" if finding.kind == "leak" else finding.split
    return [(split, name) for name in finding.related[:_BESIDE]]
