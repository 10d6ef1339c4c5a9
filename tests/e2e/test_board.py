"""The board in a real browser: a run that trains and is killed, tables that stay sorted, predictions, phone width."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser, Page, expect

from infer import web
from tests import browser as chromium
from tests.e2e import commands
from tests.unit import runs
from training.board import app

pytestmark = pytest.mark.skipif(chromium.program() is None, reason="no chromium or google-chrome on this machine")
PHONE = 390


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.opened() as made:
        yield made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one finished run, `made`."""
    return runs.finished(tmp_path, ("ant", "bee", "<b>cat</b>"), 24).parent


Opener = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, root: Path) -> Iterator[Opener]:
    """Opens a page of a board about `root`; an error or a request to another machine fails the test."""
    server = web.Server(app.app([root]), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    home, complaints, pages = f"http://127.0.0.1:{server.server_port}/", [], []

    def open_page(address: str = "", width: int = 1200, scheme: str = "light") -> Page:
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.on("console", lambda said: complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith((home, "data:", "blob:")) or complaints.append(asked.url))
        page.goto(home + address)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    server.shutdown()
    thread.join()
    server.server_close()
    assert complaints == []


def fits_and_reads(page: Page, width: int) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") == width
    ratio, text = page.evaluate(chromium.CONTRAST)
    assert ratio >= 4.5, text


def points(page: Page) -> int:
    """The epochs that the first curve shows."""
    return (page.locator(".chart path").first.get_attribute("d") or "").count("L") + 1


def test_a_run_is_followed_from_its_first_epoch_until_it_is_killed(root, opened, digits) -> None:
    board = opened(width=PHONE)
    process = commands.start("numpy", commands.words(digits, root))
    try:
        expect(board.locator(".now .card")).to_contain_text("run", timeout=120_000)
        commands.wait_for(lambda: len(list(root.glob("run/fold_0/history.jsonl"))) == 1, process)
        expect(board.locator(".now .card")).to_contain_text("of 5000", timeout=60_000)
        fits_and_reads(board, PHONE)
        board.locator(".now a").click()
        expect(board.locator("#status")).to_contain_text("best epoch so far", timeout=60_000)
        before = points(board)
        board.wait_for_function(
            "count => document.querySelector('.chart path').getAttribute('d').split('L').length > count", arg=before
        )
        fits_and_reads(board, PHONE)
        assert board.locator(".chart circle.best").count() == 3
        process.send_signal(signal.SIGKILL)
        process.wait()
        expect(board.locator("#status .state").first).to_have_text("failed", timeout=30_000)
        expect(board.locator("#status")).to_contain_text("Fold 0 failed: its process was killed")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", PHONE)])
def test_every_page_reads_well_in_both_schemes(root: Path, opened: Opener, scheme: str, width: int) -> None:
    shutil.copytree(root / "made", root / "camp" / "members" / "a")
    (root / "camp" / "campaign.yaml").write_text("members: [{name: a}, {name: b}]")
    (root / "bad").mkdir()
    (root / "bad" / "config.yaml").write_text("a: [")
    page = opened("", width, scheme)
    fits_and_reads(page, width)
    expect(page.locator(".campaigns")).to_contain_text("1 of 2 members trained")
    expect(page.locator("main")).to_contain_text("config.yaml cannot be read")
    for name in ("camp", "a", "made"):
        page.get_by_role("link", name=name, exact=True).first.click()
        expect(page.locator("h1")).to_contain_text(name)
        fits_and_reads(page, width)
        if name != "camp":
            page.get_by_role("link", name="All runs").click()
            expect(page.locator("h1")).to_have_text("Runs")


def test_the_leaderboard_stays_sorted_and_filtered_while_runs_change(root: Path, opened: Opener) -> None:
    for number, name in enumerate(("poor", "fine", "other")):
        shutil.copytree(root / "made", root / name)
        for file in [*(root / name).glob("fold_*/result.yaml"), root / name / "config.yaml"]:
            values = yaml.safe_load(file.read_text())
            values |= {"macro_f1": 0.1 + 0.1 * number} if "macro_f1" in values else {"seed": 7}
            file.write_text(yaml.safe_dump(values))
    page = opened()
    names = lambda: page.locator("[data-part=runs] tr:visible td:first-child a").all_inner_texts()  # noqa: E731
    assert names() == ["made", "other", "fine", "poor"]
    page.get_by_role("button", name="Macro-F1").click()
    assert names() == ["poor", "fine", "other", "made"]
    page.get_by_label("Filter").fill("seed=7 FINISHED")
    assert names() == ["poor", "fine", "other"]
    expect(page.locator("#count")).to_have_text("3 of 4 runs")
    for file in (root / "poor").glob("fold_*/result.yaml"):
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"macro_f1": 0.25}))
    expect(page.locator("[data-part=runs] tr:visible td:first-child a").first).to_have_text("fine")
    assert names() == ["fine", "poor", "other"]
    shutil.rmtree(root / "other")
    expect(page.locator("#count")).to_have_text("2 of 3 runs")


def test_an_image_is_predicted_on_the_runs_page_and_its_class_is_text(root: Path, opened: Opener) -> None:
    page = opened("run?run=made", PHONE, "dark")
    page.get_by_role("link", name="Predict an image").click()
    image = next((root.parent / "data" / "train").iterdir())
    page.set_input_files("input[type=file]", [image])
    expect(page.locator(".bar")).to_have_count(3)
    expect(page.locator("figure img")).to_have_count(1)  # the original; the numpy engine has no Grad-CAM
    expect(page.locator("#shown tbody tr")).to_have_count(2)
    assert page.locator(".bar", has_text="<b>cat</b>").count() == 1
    fits_and_reads(page, PHONE)


def test_a_report_is_shown_in_a_sandbox_and_its_tables_sort(root: Path, opened: Opener) -> None:
    from training import report

    report.write([root / "made"], root / "made" / "report.html")
    page = opened("run?run=made")
    page.get_by_role("link", name="Report").click()
    page.locator("table.classes thead button").nth(4).click()
    assert page.evaluate("origin") == "null"
    scores = [float(text) for text in page.locator("table.classes tbody td:nth-child(5)").all_inner_texts()]
    assert scores == sorted(scores)


def test_ctrl_c_ends_the_board_with_code_0_and_the_page_says_so(browser: Browser, root: Path) -> None:
    words = [sys.executable, "-m", "training", "board", str(root), "--port", "0"]
    process = subprocess.Popen(words, cwd=commands.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    page = browser.new_page()
    page.goto(process.stdout.readline().split()[1])
    expect(page.locator("#gone")).to_be_hidden()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 0
    expect(page.locator("#gone")).to_be_visible(timeout=15_000)
    page.close()


def test_a_hundred_epochs_of_five_folds_are_drawn(root: Path, opened: Opener) -> None:
    """The curves of a run whose numbers are partly not finite, as `history.csv` holds them."""
    best = {"epoch": 90, "macro_f1": 0.9, "accuracy": 0.9, "log_loss": 0.1, "best": True}
    for k in range(5):
        fold = root / "made" / f"fold_{k}"
        fold.mkdir(exist_ok=True)
        rows = [(epoch, 1 / epoch, "nan" if epoch == 50 else 0.5 / epoch, epoch / 100, 0.9) for epoch in range(1, 101)]
        text = "epoch,train_loss,log_loss,macro_f1,accuracy\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
        (fold / "history.csv").write_text(text)
        (fold / "history.jsonl").write_text(json.dumps(best) + "\n")
    page = opened("run?run=made", PHONE)
    loss = page.locator(".chart").first
    expect(loss.locator("path")).to_have_count(10)
    assert loss.locator("circle.best").count() == 5
    assert (loss.locator("path").first.get_attribute("d") or "").count("M") == 2
    assert page.get_by_text("Epoch", exact=True).count() == 3
