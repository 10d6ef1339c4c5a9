"""`audit.html` in a real browser: findings are filtered, sorted and exported, and the export is what training takes."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import __main__ as command
from data.audit import actions
from tests import browser
from tests.unit.test_audit_duplicates import scene

pytestmark = pytest.mark.skipif(browser.program() is None, reason="no chromium or google-chrome on this machine")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page about two classes with copies, a blank image, and a name that is markup."""
    root = tmp_path_factory.mktemp("audited")
    for number, name in enumerate(("<b>ant", "bee")):
        (root / "data" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(scene(30 * number + i)).save(root / "data" / name / f"{i:02}.png")
    shutil.copy(root / "data" / "bee" / "00.png", root / "data" / "bee" / "again.png")
    Image.fromarray(np.ascontiguousarray(scene(1)[:, ::-1])).save(root / "data" / "<b>ant" / "mirror.png")
    Image.new("RGB", (160, 120), (250, 250, 250)).save(root / "data" / "bee" / "blank.png")
    assert command.main(["audit", "--root", str(root / "data"), "--out", str(root / "out")]) == 0
    return root / "out" / "audit.html"


def test_findings_are_filtered_sorted_and_exported_as_training_takes_them(page_file: Path, tmp_path: Path) -> None:
    with browser.opened() as chromium:
        page = chromium.new_page(viewport={"width": 1100, "height": 800})
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(page_file.as_uri())
        rows = page.locator("#findings tbody tr")
        whole = rows.count()
        page.get_by_role("button", name="near duplicate").click()
        assert 0 < rows.count() < whole and all("near duplicate" in text for text in rows.all_inner_texts())
        page.locator("#text").fill("mirror.png")
        assert page.locator("#count").inner_text() == f"2 of {whole} findings"
        assert page.locator("#findings img").count() == 4, "each with its copy beside it"
        page.locator("#text").fill("")
        page.get_by_role("button", name="all ").click()
        page.locator("#action").select_option("drop")
        page.get_by_role("button", name="ID", exact=True).click()
        with page.expect_download() as download:
            page.locator("#export").click()
        download.value.save_as(tmp_path / "audit.csv")
        page.set_viewport_size({"width": 360, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert faults == []
    with (tmp_path / "audit.csv").open(newline="") as stream:
        assert [row["ID"] for row in csv.DictReader(stream)] == ["bee/again.png", "bee/blank.png"]
    assert [step.action for step in actions.read(tmp_path / "audit.csv")] == ["drop", "drop"]
