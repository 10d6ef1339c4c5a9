"""The report in a real browser: no errors, no network, tables that sort, curves that zoom, phone width, dark mode."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from playwright.sync_api import Browser, Page

import infer
from data import csvfile
from tests import browser as chromium
from tests.unit import members, runs
from training import report

pytestmark = pytest.mark.skipif(chromium.program() is None, reason="no chromium or google-chrome on this machine")
HOSTILE = ("<script>document.title='taken'</script>", '"><img src=x onerror="document.title=1">', "a & b", "long " * 9)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.opened() as made:
        yield made


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    run = runs.finished(root, ("ant", "bee", *HOSTILE), 60, ids=[f"<b>{i}&.png" for i in range(60)], skill=1.0)
    rows = [(f"test_{i}.png", ("ant", "bee", *HOSTILE)[i % 5]) for i in range(20)]
    csvfile.write(root / "submission.csv", ("ID", "target"), rows)
    return report.write([run], run / "report.html", submission=root / "submission.csv")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = runs.finished(tmp_path_factory.mktemp("large"), tuple(f"class {i}" for i in range(396)), 1188, skill=4.0)
    return report.write([run], run / "report.html")


Opener = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opener]:
    """Opens a page; whatever it complains of or asks the network for fails the test."""
    complaints: list[str] = []
    pages: list[Page] = []

    def open_page(path: Path, width: int = 1100, scheme: str = "light") -> Page:
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme, has_touch=width < 500)
        page.on("console", lambda said: complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or complaints.append(asked.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not complaints


def column(page: Page, table: str, number: int) -> list[str]:
    return page.locator(f"{table} tbody tr td:nth-child({number})").all_inner_texts()


def test_tables_sort_by_number_and_by_name(small: Path, opened: Opener) -> None:
    page = opened(small)
    heads = page.locator("table.classes thead button")
    before = column(page, "table.classes", 5)
    heads.nth(4).click()
    up = column(page, "table.classes", 5)
    assert up == sorted(before, key=float)
    assert up != before
    heads.nth(4).press("Enter")
    assert column(page, "table.classes", 5) == up[::-1]
    assert page.locator("table.classes th").nth(4).get_attribute("aria-sort") == "descending"
    heads.nth(0).click()
    names = column(page, "table.classes", 1)
    assert names.index("ant") < names.index("bee")


def test_what_users_name_is_text_and_never_markup(small: Path, opened: Opener) -> None:
    page = opened(small)
    assert page.title() == "made"
    assert set(column(page, "table.classes", 1)) >= set(HOSTILE[:3])
    assert page.locator(".matrix thead th").nth(3).inner_text() == HOSTILE[0]
    assert "<b>" in page.locator(".mistakes figcaption").first.inner_text()
    assert page.locator("img").count() == page.locator("img[src^='data:image/jpeg']").count() > 0


def test_curves_zoom_and_come_back(small: Path, opened: Opener) -> None:
    page = opened(small)
    chart = page.locator(".chart").first
    drawing = chart.locator("svg")
    whole = drawing.locator("path").first.get_attribute("d")
    assert whole is not None
    assert whole.count("L") == 7
    drawing.scroll_into_view_if_needed()
    box = drawing.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 60)
    assert "fold 0" in chart.locator(".say").inner_text()
    page.mouse.up()
    zoomed = drawing.locator("path").first.get_attribute("d")
    assert zoomed is not None
    assert 0 < zoomed.count("L") < 7
    chart.get_by_text("Reset zoom").click()
    assert drawing.locator("path").first.get_attribute("d") == whole
    page.locator(".legend button").first.click()
    assert drawing.locator("path").count() == 3


def test_labels_answers_and_test_predictions_stand_side_by_side(small: Path, opened: Opener) -> None:
    page = opened(small)
    rows = page.locator("table.distribution tbody tr")
    assert rows.count() == 6
    ant = rows.nth(0).locator("td").all_inner_texts()
    assert (ant[1], ant[2], ant[5], ant[6]) == ("10", "16.7%", "4", "20.0%")
    assert rows.nth(0).locator(".trio i").count() == 3


@pytest.mark.parametrize(("which", "scheme"), [("small", "light"), ("small", "dark"), ("large", "dark")])
def test_a_phone_shows_it_without_scrolling_sideways(which, scheme, opened, request) -> None:
    page = opened(request.getfixturevalue(which), 360, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    ratio, text = page.evaluate(chromium.CONTRAST)
    assert ratio >= 4.5, text


@pytest.mark.parametrize("classes", [5, 40])
def test_the_page_of_an_evaluation_sorts_and_fits_a_phone(classes: int, opened: Opener, tmp_path: Path) -> None:
    names = ("ant", "bee", *map(str.strip, HOSTILE), *(f"class {i}" for i in range(40)))[:classes]
    best = members.checkpoint(tmp_path / "best", of=members.card(names, size=16))
    runs.finished(tmp_path, names, 80)
    with infer.load(best) as model:
        found = infer.evaluate(model, tmp_path / "data", out=tmp_path / "evaluation")
    page = opened(tmp_path / "evaluation" / "report.html", 360, "dark")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    ratio, text = page.evaluate(chromium.CONTRAST)
    assert ratio >= 4.5, text
    before = column(page, "table.classes", 5)
    page.locator("table.classes thead button").nth(4).click()
    assert column(page, "table.classes", 5) == sorted(before, key=float)
    assert set(column(page, "table.classes", 1)) >= {names[number] for number in set(found.targets)}
    assert page.locator(".card b").first.inner_text() == f"{found.accuracy:.4f}"
    assert page.locator(".card").count() == (5 if classes >= 10 else 4)
    assert page.locator(".mistakes figure").count() == 12 and page.locator("img[src^='data:image/jpeg']").count() == 12
    assert page.locator("canvas").count() == (classes > 30)


def test_dark_mode_is_dark(small: Path, opened: Opener) -> None:
    shades = [
        opened(small, scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    assert shades == ["rgb(255, 255, 255)", "rgb(18, 22, 27)"]


def test_396_classes_stay_readable_and_small(large: Path, opened: Opener) -> None:
    assert large.stat().st_size < 1_500_000
    page = opened(large)
    canvas = page.locator("canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + (7.5 / 396) * box["width"], box["y"] + (7.5 / 396) * box["height"])
    assert page.locator(".large-matrix .soft").inner_text().startswith("true class 7, said class 7: ")
    images = [int(cell) for cell in column(page, "table.pairs", 3)]
    assert images == sorted(images, reverse=True)
    colours = page.evaluate(
        "new Set(Uint32Array.from(new Uint32Array("
        "document.querySelector('canvas').getContext('2d').getImageData(0, 0, 396, 396).data.buffer))).size"
    )
    assert colours > 3


def test_the_page_says_what_went_wrong_before(opened: Opener, tmp_path: Path) -> None:
    run = runs.finished(tmp_path, ("ant", "bee"), 12)
    (run / "failed.yaml").write_text("- {member: big, fold: 3, reason: out of memory}\n")
    csvfile.write(run / "audit.csv", ("ID", "finding", "detail"), [("1.png", "near_duplicate", "of 2.png")])
    page = opened(report.write([run], run / "report.html"))
    assert page.locator(".note").inner_text() == "Left out: big, fold 3. out of memory"
    assert column(page, "table.audit", 2) == ["near_duplicate"]
    assert np.isin(["Audit", "Reproduce"], page.locator("nav a").all_inner_texts()).all()


def analysis() -> dict:
    """What `python -m infer fit` leaves beside an ensemble: ENSEMBLE_analysis.json, version 1."""
    names = ("log_loss", "macro_f1", "accuracy", "brier", "ece")
    score = lambda name: {"name": name, "rows": 12, **dict.fromkeys(names, 0.5)}  # noqa: E731
    bins = {"images": [0, 6, 6], "confidence": [None, 0.5, 0.9], "accuracy": [None, 0.4, 1.0]}
    return {
        "version": 1,
        "runs": ["one", HOSTILE[0]],
        "scores": [score("one"), score(HOSTILE[0]), score("cross-fitted")],
        "before": score("before"),
        "after": [score("temperature"), score("no calibration")],
        "rules": [score("labels by prior")],
        "calibration": "temperature",
        "rule": "prior",
        "metric": "log_loss",
        "expected": {name: {"value": 0.5, "low": 0.4, "high": 0.6} for name in names[:3]},
        "folds": [],
        "histogram": {"edges": [0.0, 0.5, 1.0], "right": [1, 9], "wrong": [2, 0]},
        "mistakes": [{"id": "image 00000.png", "true": "ant", "predicted": "bee", "probability": 0.9}],
        "confused": [{"true": "ant", "predicted": "bee", "count": 2, "of": 6}],
        "agreement": [[1.0, 0.75], [0.75, 1.0]],
        "reliability": {"before": bins, "after": bins},
        "notes": ["two runs of one seed"],
    }


def test_an_ensemble_shows_its_weights_and_what_to_expect(opened: Opener, tmp_path: Path) -> None:
    run = runs.finished(tmp_path, ("ant", "bee"), 12)
    members = [
        {"path": f"runs/made/fold_{k}/best", "group": ("one", "two")[k], "weight": 0.1 + 0.2 * k} for k in (0, 1)
    ]
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump({"members": members, "temperature": 1.25}))
    (tmp_path / "ensemble_analysis.json").write_text(json.dumps(analysis()))
    page = opened(report.write([run], tmp_path / "report.html", tmp_path / "ensemble.yaml"), width=360)
    assert column(page, "table.weights", 1) == ["two", "one", HOSTILE[0]]
    assert column(page, "table.weights", 2) == ["75.0%", "25.0%", "0.0%"]
    assert page.locator(".card").first.inner_text().split("\n") == [
        "Expected Macro-F1",
        "0.5000",
        "95%: 0.4000 to 0.6000",
    ]
    kinds = column(page, "table.fitted", 2)
    assert kinds[:4] == ["alone", "alone", "ensemble", "ensemble, before calibration"]
    assert kinds[4:] == ["calibration, kept", "calibration", "labels, kept"]
    assert page.locator(".diagram").nth(0).locator("rect").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate(chromium.CONTRAST)[0] >= 4.5
