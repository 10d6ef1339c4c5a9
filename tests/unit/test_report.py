"""`python -m training report`: what it finds by itself, and what it says of bad input. The page: tests/e2e."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from data import csvfile
from infer.pages import figures as shared
from tests.unit import runs
from training.__main__ import main
from training.report import figures, plots


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return runs.finished(tmp_path, ("ant", "bee", "cat"), 24, skill=1.0)


def test_a_campaign_is_reported_with_its_ensemble_and_newest_submission(run: Path, tmp_path: Path) -> None:
    campaign = tmp_path / "campaign"
    (campaign / "members").mkdir(parents=True)
    run.rename(campaign / "members" / "one")
    (campaign / "ensemble.yaml").write_text("members: [{path: members/one/fold_0/best, group: one}]")
    (campaign / "submissions").mkdir()
    csvfile.write(campaign / "submissions" / "sent.csv", ("ID", "ant", "bee", "cat"), [("x.png", 0.1, 0.7, 0.2)])
    assert main(["report", str(campaign)]) == 0
    page = (campaign / "report.html").read_text()
    assert 'id="ensemble"' in page
    assert "sent.csv: 1 image, 1 class predicted" in page


def test_a_data_set_that_is_gone_costs_only_the_pictures(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "data")
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "data:image" not in page
    assert "Most confident mistakes" not in page
    assert "Class distribution" in page


def test_without_gradients_the_page_says_so(run: Path) -> None:
    assert main(["report", str(run)]) == 0
    assert "No Grad-CAM: " in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{run}/fold_0"], "is no finished run, nor a campaign"),
        (["{run}", "--ensemble", "none.yaml"], "none.yaml: cannot be read"),
        (["{run}", "--submission", "{bad}"], "line 2 has 'much' for 'ant', which is no number"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, run: Path, tmp_path: Path, capsys) -> None:
    csvfile.write(tmp_path / "bad.csv", ("ID", "ant", "bee"), [("x.png", "much", 1)])
    assert main(["report", *(word.format(run=run, bad=tmp_path / "bad.csv") for word in words)]) > 0
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_run_that_is_not_finished_says_how_to_go_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "fold_results.yaml").unlink()
    assert main(["report", str(run)]) == 1
    assert f"go on with --resume {run}" in capsys.readouterr().err


def test_the_figures_are_scikit_learns() -> None:
    from sklearn.metrics import brier_score_loss, confusion_matrix, precision_recall_fscore_support

    draw = np.random.default_rng(0)
    logits, targets = draw.normal(size=(60, 4)).astype(np.float32), draw.integers(0, 4, 60)
    said = logits.argmax(axis=1)
    counts = confusion_matrix(targets, said, labels=range(5))
    rows = figures.classes(counts, tuple("abcde"))
    want = precision_recall_fscore_support(targets, said, labels=range(5), zero_division=0)
    for column, key in zip(want, ("precision", "recall", "f1", "support"), strict=True):
        np.testing.assert_allclose([row[key] for row in rows], column, rtol=1e-12)
    found = figures.reliability(logits, targets)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found["brier"] == pytest.approx(
        brier_score_loss(targets, probabilities, labels=range(4), scale_by_half=False)
    )
    assert sum(bin_["n"] for bin_ in found["bins"]) == 60
    worst = shared.pairs(counts, tuple("abcde"))[0]
    off = counts - np.diag(np.diag(counts))
    assert worst["n"] == off.max()


def test_plots_of_one_epoch_have_a_point_and_long_class_names_leave_the_matrix_its_room() -> None:
    one = {name: np.array([1.0]) for name in ("epoch", "log_loss", "train_loss", "accuracy", "macro_f1")}
    assert all(line.get_marker() == "o" for line in plots.curves({"fold 0": one}).axes[1].lines)
    figure = plots.confusion_figure(np.eye(2, dtype=np.int64), ["a", "a class whose name is far too long for a plot"])
    FigureCanvasAgg(figure).draw()
    matrix, bar = figure.axes
    assert matrix.get_window_extent().width > 0.25 * figure.bbox.width
    assert bar.get_tightbbox().x1 <= figure.bbox.width and matrix.get_tightbbox().x0 >= 0
    assert [len(label.get_text()) for label in matrix.get_yticklabels()] == [1, 32]
