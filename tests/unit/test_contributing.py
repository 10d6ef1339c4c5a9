"""CONTRIBUTING.md names what is there: every room in its layout, and only targets that the Makefile has."""

from __future__ import annotations

import re

import pytest

from tests.unit.test_house import LEVEL, ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
PAGES = ("CONTRIBUTING.md", "docs/engineering/release.md")


def test_every_room_is_in_the_layout() -> None:
    layout = TEXT.split("```")[1]
    rooms = {path.parent for name in LEVEL for path in (ROOT / name).rglob("__init__.py")}
    missing = sorted(str(room.relative_to(ROOT)) for room in rooms if f"{room.name}/ " not in layout)
    assert not missing, f"CONTRIBUTING.md's layout lacks {missing}"


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_of_the_docs_exists(page: str) -> None:
    named = set(re.findall(r"`make ([a-z-]+)", (ROOT / page).read_text()))
    assert named
    assert named <= set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def test_the_fast_tests_of_make_check_exist() -> None:
    listed = MAKEFILE.partition("tests/unit/test_%.py,")[2].partition(")")[0].replace("\\", "").split()
    assert listed
    assert [name for name in listed if not (ROOT / f"tests/unit/test_{name}.py").is_file()] == []
