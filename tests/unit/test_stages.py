"""Campaigns by the command line on the NumPy engine: all stages, each alone, failures, second starts, wrong input."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from config import load
from config.errors import Diverged, Interrupted, OutOfMemory
from data import folds, sources
from infer.io import validation
from tests.numpy_engine import session
from training import cli
from training.campaign import pipeline, start
from training.loop import trainer
from training.report import summary

TWO = """
weights: none
folds: {strategy: stratified, n_splits: 2}
data: {image_size: 16, workers: 1, audit: false}
train: {epochs: 2, batch_size: 8}
optim: {lr: 0.05}
tta: {views: [original, hflip]}
members:
  - {name: first, model: convnext_atto, weight: 2}
  - {name: second, model: resnet18, seed: 5}
"""


@pytest.fixture(scope="module")
def data(digits: Path, all_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The few digits, with six test images and a sample submission whose order is not the table's."""
    root = tmp_path_factory.mktemp("data") / "digits"
    shutil.copytree(digits, root)
    (root / "test").mkdir()
    images = sorted((all_digits / "test").iterdir())[:6]
    for image in images:
        shutil.copy(image, root / "test")
    lines = [f"0,{image.name}" for image in reversed(images)]
    (root / "sample_submission.csv").write_text("\n".join(["target,ID", *lines]) + "\n")
    return root


@pytest.fixture
def command(data: Path, tmp_path: Path) -> Callable[..., int]:
    """`train_numpy.py` on the two members, or with `--resume` on what it names."""
    (tmp_path / "two.yaml").write_text(TWO)

    def run(*more: str) -> int:
        given = [] if "--resume" in more else ["--config", str(tmp_path / "two.yaml"), "--data.root", str(data)]
        return cli.main("numpy", [*given, *([] if given == [] else ["--out", str(tmp_path / "runs")]), *more])

    return run


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the plots, the pages and the audits of single runs, which have tests of their own."""
    for part in (summary.plots, summary.report):
        monkeypatch.setattr(part, "write", lambda *_: None)
    monkeypatch.setattr(summary.audit, "after", lambda _: [])


def campaign(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "runs").iterdir()
    return found


def changes(folder: Path) -> dict[Path, int]:
    kept = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path: path.stat().st_mtime_ns for path in kept if path.name != "report.html"}


def test_one_command_makes_all_from_images_to_submission_and_a_second_makes_nothing(
    command: Callable[..., int], data: Path, tmp_path: Path
) -> None:
    assert command("--mode", "full", "--data.audit", "true") == 0
    folder = campaign(tmp_path)
    assert (folder / "audit" / "audit.html").exists()
    table = sources.load(data)
    split = folds.read(folder / "folds.csv", table)
    for name in ("first", "second"):
        run = folder / "members" / name
        assert (run / "folds.csv").read_bytes() == (folder / "folds.csv").read_bytes()
        assert len(yaml.safe_load((run / "fold_results.yaml").read_text())["folds"]) == 2
        assert load.read(run / "config.yaml").folds.strategy == "stratified"
    assert folds.numbers(split) == [0, 1]
    made = yaml.safe_load((folder / "ensemble.yaml").read_text())
    assert {member["path"].split("/")[1] for member in made["members"]} <= {"first", "second"}
    assert made["views"] == ["original", "hflip"]
    (sent,) = (folder / "submissions").glob("*[0-9].csv")
    assert validation.faults(sent, data / "sample_submission.csv") == []
    with sent.open(newline="") as stream:
        assert next(csv.reader(stream)) == ["target", "ID"]
    assert "second" in (folder / "report.html").read_text()
    before = changes(folder)
    assert command("--mode", "full", "--data.audit", "true") == 0
    assert changes(folder) == before
    assert campaign(tmp_path) == folder


@pytest.mark.usefixtures("undrawn")
def test_each_stage_alone_names_what_it_lacks_and_goes_on_from_what_is_there(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--mode", "fit") == 1
    assert "holds no campaign of these settings; first: python train_numpy.py --mode train" in capsys.readouterr().err
    assert command("--mode", "train", "--member", "second", "--fold", "1") == 0
    folder = campaign(tmp_path)
    assert [str(path.parent.relative_to(folder)) for path in folder.rglob("result.yaml")] == ["members/second/fold_1"]
    assert command("--mode", "predict") == 1
    wanted = f"ensemble.yaml: is not there; first: python train_numpy.py --mode fit --resume {folder}"
    assert wanted in capsys.readouterr().err
    assert command("--mode", "train", "--member", "second", "--fold", "7", "--resume", str(folder)) == 2
    assert "there is no fold 7; there are [0, 1]" in capsys.readouterr().err
    assert command("--mode", "train", "--resume", str(folder)) == 0, "the campaign does not remember the one fold"
    assert "1 of 4 folds are done" in capsys.readouterr().out
    for mode in ("fit", "predict", "report"):
        assert command("--mode", mode, "--resume", str(folder)) == 0
    assert len(list((folder / "submissions").glob("*[0-9].csv"))) == 1


@pytest.mark.usefixtures("undrawn")
def test_other_views_and_weights_make_a_new_ensemble_and_keep_the_old_one(
    command: Callable[..., int], tmp_path: Path
) -> None:
    assert command("--mode", "train", "--train.epochs", "1") == 0
    folder = campaign(tmp_path)
    assert command("--mode", "fit", "--resume", str(folder)) == 0
    first = (folder / "ensemble.yaml").read_text()
    assert command("--mode", "fit", "--resume", str(folder), "--tta.views", "[original]") == 0
    assert (folder / "ensemble_1.yaml").read_text() == first
    assert yaml.safe_load((folder / "ensemble.yaml").read_text())["views"] == ["original"]
    assert load.read_members(folder / "campaign.yaml")[1].settings.tta.views == ("original",)
    assert command("--mode", "fit", "--resume", str(folder), "--ensemble.method", "fixed") == 0
    shares: dict[str, float] = {}
    for member in yaml.safe_load((folder / "ensemble.yaml").read_text())["members"]:
        shares[member["group"]] = shares.get(member["group"], 0) + member["weight"]
    assert shares["first"] == pytest.approx(2 * shares["second"]), "fixed weights are the members' own"


@pytest.mark.usefixtures("undrawn")
def test_a_changed_setting_is_another_campaign_and_cannot_be_slipped_in(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--mode", "train", "--train.epochs", "1") == 0
    folder = campaign(tmp_path)
    assert command("--mode", "train", "--resume", str(folder), "--optim.lr", "0.3") == 2
    assert "first: optim.lr: 0.05, now 0.3" in capsys.readouterr().err
    assert command("--mode", "train", "--name", folder.name, "--train.epochs", "2") == 2
    assert "another run has this name (first: train.epochs: 1, now 2; second:" in capsys.readouterr().err
    assert command("--resume", str(folder), "--member", "first") == 2
    assert "is a campaign; add --mode full" in capsys.readouterr().err
    assert command("--mode", "fit", "--resume", str(folder / "members" / "first")) == 2
    assert "no campaign.yaml, so this is no campaign" in capsys.readouterr().err


def failing(monkeypatch: pytest.MonkeyPatch, model: str, error: Exception, times: int = 10**9) -> list[int]:
    """Have the training of a model end in `error` so many times; the micro-batches that were tried."""
    whole, tried = trainer.Trainer.run, list[int]()

    def broken(self: trainer.Trainer):  # type: ignore[no-untyped-def]
        if self.card.model == model and len(tried) < times:
            tried.append(int((self.folder / "micro_batch.txt").read_text()) if list(self.folder.glob("micro*")) else 0)
            raise error
        return whole(self)

    monkeypatch.setattr(trainer.Trainer, "run", broken)
    return tried


@pytest.mark.usefixtures("undrawn")
def test_a_member_that_diverges_is_tried_again_at_half_the_micro_batch_then_left_out(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        tried = failing(patched, "resnet18", Diverged("10 updates in a row were not finite"))
        assert command("--mode", "full") == 3
        assert tried == [0, 4, 0, 4], "each of the two folds once more, with 4 of 8 images at a time"
        assert command("--mode", "full") == 3, "what failed is not tried again by itself"
        assert len(tried) == 4
    folder = campaign(tmp_path)
    assert "left out: fold 1 of second: 10 updates in a row were not finite" in capsys.readouterr().out
    kept = yaml.safe_load((folder / "failed.yaml").read_text())
    assert [(row["member"], row["fold"], row["error"]) for row in kept] == [
        ("second", 0, "Diverged"),
        ("second", 1, "Diverged"),
    ]
    made = yaml.safe_load((folder / "ensemble.yaml").read_text())
    assert {member["group"] for member in made["members"]} == {"first"}
    assert command("--mode", "train", "--member", "second") == 0, "asked for by name, it is tried again"
    assert not (folder / "failed.yaml").exists()
    assert command("--mode", "full") == 0
    assert (folder / "ensemble_1.yaml").exists(), "the ensemble is made anew, with the member that came late"


@pytest.mark.usefixtures("undrawn")
def test_a_second_try_that_succeeds_leaves_no_trace_of_failure(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "resnet18", Diverged("not finite"), times=1)
    assert command("--mode", "train") == 0
    assert not list(campaign(tmp_path).rglob("failed.yaml"))


@pytest.mark.usefixtures("undrawn")
def test_a_member_that_no_memory_holds_is_left_out(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: object) -> None:
        raise OutOfMemory("the device has 1 MiB")

    monkeypatch.setattr(session.Session, "train_step", too_much)
    assert command("--mode", "train", "--member", "first", "--fold", "0") == 3
    (row,) = yaml.safe_load((campaign(tmp_path) / "failed.yaml").read_text())
    assert (row["error"], row["micro_batch"]) == ("OutOfMemory", 1)
    assert "not even one image at a time fits" in row["reason"]


@pytest.mark.usefixtures("undrawn")
def test_without_any_trained_fold_the_ensemble_says_why(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in ("resnet18", "convnext_atto"):
        failing(monkeypatch, model, Diverged("nothing was finite"))
    assert command("--mode", "full") == 1
    assert "all folds were left out (nothing was finite" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_stop_in_the_middle_is_gone_on_with_and_ends_like_an_undisturbed_one(
    command: Callable[..., int], data: Path, tmp_path: Path
) -> None:
    words = ["--config", str(tmp_path / "two.yaml"), "--data.root", str(data)]
    found = load.parse_command([*words, "--out", str(tmp_path / "runs")], prog="test").members
    questions = 0

    def stop() -> bool:
        nonlocal questions
        questions += 1
        return questions > 20

    begun = start.begin("numpy", found, stop)
    with pytest.raises(Interrupted) as caught:
        pipeline.work(begun, load.parse_command([*words, "--mode", "full"], "test").request)
    assert caught.value.folder == begun.folder == campaign(tmp_path)
    assert command("--mode", "train") == 0
    other = cli.main("numpy", [*words, "--out", str(tmp_path / "other"), "--mode", "train"])
    assert other == 0
    for one in sorted(begun.folder.rglob("result.yaml")):
        two = next((tmp_path / "other").iterdir()) / one.relative_to(begun.folder)
        first, second = (yaml.safe_load(path.read_text()) for path in (one, two))
        assert {**first, "seconds": 0} == {**second, "seconds": 0}


@pytest.mark.usefixtures("undrawn")
def test_members_that_see_other_views_are_refused_when_the_ensemble_is_made(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TWO.replace("seed: 5", "seed: 5, tta: {views: [original]}")
    (tmp_path / "two.yaml").write_text(text)
    assert command("--mode", "full", "--train.epochs", "1") == 2
    assert "tta.views: second has ['original'], first has ['original', 'hflip']" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_data_set_without_test_images_ends_with_the_ensemble(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.root", str(digits), "--out", str(tmp_path), "--model", "convnext_atto", "--weights", "none"]
    words += ["--data.image_size", "16", "--train.epochs", "1", "--optim.lr", "0.05"]
    assert cli.main("numpy", [*words, "--mode", "full"]) == 0
    assert "no submission: " in capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    assert (folder / "members" / "convnext_atto" / "fold_0" / "result.yaml").exists()
    assert cli.main("numpy", ["--mode", "predict", "--resume", str(folder)]) == 1
    assert "has neither test.csv nor test/" in capsys.readouterr().err
