"""What README.md and docs/ name is there: modules that are started, files of the repository. Links: `test_docs`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "Makefile", *sorted((ROOT / "docs").rglob("*.md"))]
ROOMS = sorted(p.parent.name for p in ROOT.glob("*/__init__.py"))
# A data set's own files, and what a command writes.
ELSEWHERE = (
    r"data/images|training/0|data/train-0|docs/test\.csv|docs/engineering/benchmarks_gpu\.|ports/FAMILY"
    r"|models/registry\.FAM|tests/unit/test_$"
)


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_module_and_file_that_a_page_names_is_there(page: Path) -> None:
    text, rooms = page.read_text(encoding="utf-8"), "|".join(ROOMS)
    started = re.findall(rf"-m ((?:{rooms})\b(?:\.\w+)*)", text)
    paths = re.findall(rf"(?<![\w/.{{-])((?:docs|{rooms})/[\w./*-]*\w|train_\w+\.py)", text)
    gone = [name for name in started if not _is_module(name)]
    gone += [path for path in paths if not re.match(ELSEWHERE, path) and not [*ROOT.glob(path)]]
    assert not gone
