"""Second heads: what they change of an answer, whether they are kept, and the way from a run to an ensemble."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.special import softmax
from sklearn.metrics import log_loss

import infer
from config import load
from config.errors import CheckpointError, ConfigError, DataError
from infer import ensemble, fit, inputs, pairs
from infer.ensemble import Ensemble
from infer.member import Member
from infer.pairs import Pair
from infer.runner import Runner
from tests.unit import members
from tests.unit.test_campaign import NEVER, settings
from training import __main__ as training
from training import campaign, cli, leaderboard

NAMES = ("ant", "bee", "cat", "dog")


def test_a_second_head_changes_its_two_classes_alone_and_never_their_sum() -> None:
    rows = softmax(np.random.default_rng(0).normal(size=(50, 5)), axis=1)
    before, said = rows.copy(), np.linspace(0, 1, 50)
    pairs.share(rows, (3, 1), said, 1.0, 0.01)
    assert np.array_equal(rows[:, [0, 2, 4]], before[:, [0, 2, 4]])
    assert np.allclose(rows[:, [1, 3]].sum(1), before[:, [1, 3]].sum(1))
    assert np.allclose(rows[:, 3] / rows[:, [1, 3]].sum(1), np.clip(said, 0.01, 0.99))
    half = before.copy()
    pairs.share(half, (3, 1), said, 0.5)
    assert np.allclose(half[:, 3], (before[:, 3] + before[:, [1, 3]].sum(1) * said) / 2)


def test_at_most_one_second_head_is_asked_the_one_of_the_two_most_probable_classes() -> None:
    rows = np.array([[0.5, 0.2, 0.3, 0], [0.5, 0.3, 0.2, 0], [0.1, 0.2, 0.1, 0.6], [np.nan] * 4, [0.1, 0.6, 0.1, 0.2]])
    assert pairs.asked(rows, [(0, 1), (2, 0)]).tolist() == [1, 0, -1, -1, 0]
    assert pairs.asked(rows, []).tolist() == [-1] * 5


@pytest.mark.parametrize("keep", ["all", "one"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_runner_asks_second_heads_of_another_size_and_gives_what_they_say(
    tmp_path: Path, keep: str, adaptive: bool
) -> None:
    paths, pixels = members.photographs(tmp_path / "images", count=23)
    first = [members.checkpoint(tmp_path / f"first{i}", i, members.card(NAMES)) for i in range(2)]
    two = members.card(("bee", "dog"), size=16)
    second = [members.checkpoint(tmp_path / f"second{i}", 7 + i, two) for i in range(2)]
    plain = ensemble.of([str(path) for path in first], ["flips"]).model_copy(update={"adaptive": 0.4})
    small = ensemble.of([str(path) for path in second], ["flips"])
    pair = Pair(classes=("dog", "bee"), weight=0.75, members=small.members)
    with Runner(plain, adaptive=adaptive) as runner, Runner(small) as other:
        expected, said = (model.predict(list(pixels)).probabilities for model in (runner, other))
    rows = np.flatnonzero(pairs.asked(expected, [(1, 3)]) == 0)
    assert 3 < len(rows) < 23
    part = 0.25 * expected[rows, 1] / expected[rows][:, [1, 3]].sum(1) + 0.75 * said[rows, 0]
    expected[rows[:, None], [1, 3]] = expected[rows][:, [1, 3]].sum(1)[:, None] * np.stack([part, 1 - part], axis=1)
    paths[6].write_bytes(b"")
    with Runner(plain.model_copy(update={"pairs": (pair,)}), keep=keep, adaptive=adaptive) as runner:  # type: ignore[arg-type]
        parts = list(runner.stream(inputs.of_paths(paths), runner.grid(23, 4), 3, skip_bad=True))
    answers, good = np.concatenate([part.probabilities for part in parts]), np.arange(23) != 6
    assert np.isnan(answers[6]).all()
    assert np.allclose(answers[good], expected[good], atol=2e-6)


def test_a_file_keeps_its_pairs_and_names_what_is_wrong_with_them(tmp_path: Path) -> None:
    for name in "ab":
        members.checkpoint(tmp_path / name, of=members.card(NAMES[: 4 if name == "a" else 2]))
    pair = Pair(classes=("ant", "bee"), members=(Member(path=tmp_path / "b", temperature=2.0),))
    whole = Ensemble(members=(Member(path=tmp_path / "a"),), pairs=(pair,))
    ensemble.write(tmp_path / "e.yaml", whole)
    assert ensemble.read(tmp_path / "e.yaml") == whole
    raw = yaml.safe_load((tmp_path / "e.yaml").read_text())
    assert raw["pairs"][0]["members"] == [{"path": "b", "group": "", "weight": 1.0, "temperature": 2.0}]
    wrong = {
        "pairs: ant and bee stand there twice": {**raw, "pairs": raw["pairs"] * 2},
        "unknown key; did you mean weight": {**raw, "pairs": [{**raw["pairs"][0], "wieght": 1}]},
        "do not exist": {**raw, "pairs": [{**raw["pairs"][0], "members": [{"path": "gone"}]}]},
        "not the two classes 'ant' and 'cat'": {**raw, "pairs": [{**raw["pairs"][0], "classes": ["ant", "cat"]}]},
    }
    for text, content in wrong.items():
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(ConfigError, match=text):
            infer.load(tmp_path / "wrong.yaml")


def confused(tmp_path: Path, skill: float) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    """A run that knows its classes but for ant and bee, and a run of these two that knows them by `skill`."""
    rng, count = np.random.default_rng(1), 240
    targets = rng.integers(0, 4, count)
    logits = 4 * np.eye(4)[targets] + rng.normal(size=(count, 4))
    between = targets < 2
    logits[between, :2] = 3 + 1.5 * np.eye(2)[targets[between]] + rng.normal(size=(between.sum(), 2))
    ids = [f"{i:03}.png" for i in range(count)]
    first = members.run(tmp_path / "first", [logits] * 3, targets, ids, members.card(NAMES))
    mine = np.flatnonzero(targets < 2)
    said = skill * np.eye(2)[targets[mine]] + rng.normal(size=(len(mine), 2))
    two = members.card(("ant", "bee"))
    second = members.run(tmp_path / "second", [said] * 3, targets[mine], [ids[i] for i in mine], two)
    return first, second, targets, logits


def test_a_second_head_that_knows_more_is_kept_and_its_honest_score_is_scikit_learns(tmp_path: Path) -> None:
    first, second, targets, _ = confused(tmp_path, 4.0)
    found = fit.fit([first], pairs=[second])
    without, having = found.paired
    assert having.log_loss < without.log_loss / 2 and having.accuracy > without.accuracy + 0.05
    (judged,) = found.pairs
    said = np.exp(judged.apply(found.found.kept).astype(float))
    assert log_loss(targets, said / said.sum(axis=1, keepdims=True)) == pytest.approx(having.log_loss, rel=1e-5)
    assert found.ensemble.pairs[0].classes == ("ant", "bee") and len(found.ensemble.pairs[0].members) == 3
    assert "kept with weight" in fit.report(found) and judged.errors[1] < judged.errors[0]


def test_a_second_head_that_guesses_is_left_out_and_said_so(tmp_path: Path) -> None:
    first, second, *_ = confused(tmp_path, 0.0)
    found = fit.fit([first], pairs=[second])
    assert found.ensemble.pairs == () and found.paired == ()
    assert any("left out, as" in note for note in found.notes)


def test_a_second_head_without_a_mistake_is_not_taken_for_certain(tmp_path: Path) -> None:
    first, second, *_ = confused(tmp_path, 40.0)
    (judged,) = fit.fit([first], pairs=[second]).pairs
    assert judged.errors[1] == 0
    assert 1e-3 < np.minimum(judged.said, 1 - judged.said).max() < 0.1


def test_a_run_that_is_no_second_head_is_refused_in_one_line(tmp_path: Path) -> None:
    first, second, *_ = confused(tmp_path, 4.0)
    with pytest.raises(ConfigError, match="it takes a run of two"):
        fit.fit([first], pairs=[first])
    with pytest.raises(ConfigError, match="same two classes"):
        fit.fit([first], pairs=[second, second])


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two folds on ten digits."""
    small = ("--model", "test_resnet", "--data.image_size", "32", "--train.epochs", "1", "--train.compile", "off")
    return campaign.run_all("torch", settings(digits, tmp_path_factory.mktemp("runs"), *small), NEVER)


def test_one_command_trains_a_pair_on_the_folds_and_from_the_networks_of_the_run(
    run: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pair", str(run), "--classes", "7", "1", "--optim.lr", "1e-9", "--train.epochs", "2"]
    assert training.main(words) == 0
    (made,) = (run / "pairs").iterdir()
    assert f"python -m infer fit {run} --pairs {made}" in capsys.readouterr().out
    with (run / "folds.csv").open() as stream:
        whole = [row for row in csv.DictReader(stream) if row["target"] in "17"]
    with (made / "folds.csv").open() as stream:
        assert list(csv.DictReader(stream)) == whole
    assert load.read(made / "config.yaml").data.classes == ("7", "1")
    assert infer.oof.read(made).class_names == ("1", "7")
    before = (made / "fold_results.yaml").stat().st_mtime_ns
    assert training.main(words) == 0 and (made / "fold_results.yaml").stat().st_mtime_ns == before
    assert [entry.name for entry in leaderboard.read([run.parent])] == [run.name]
    assert infer.main(["fit", str(run), "--pairs", str(made), "--out", str(tmp_path / "e.yaml")]) == 0
    assert "second head 1 / 7" in capsys.readouterr().out
    assert (
        infer.main(
            [
                "--ensemble",
                str(tmp_path / "e.yaml"),
                "--images",
                str(digits / "train"),
                "--out",
                str(tmp_path / "s.npz"),
            ]
        )
        == 0
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--classes", "1", "ten"], "'ten' is no class of"),
        (["--classes", "1", "1"], "two different classes"),
        (["--optim.lrr", "1"], "did you mean"),
    ],
)
def test_a_wrong_pair_command_is_one_line(
    run: Path, words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert training.main(["pair", str(run), *words]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_each_fold_begins_with_the_checkpoint_of_its_number(run: Path, digits: Path, tmp_path: Path) -> None:
    gone = settings(digits, tmp_path, "--weights", str(run), "--folds.kind", "stratified", "--folds.count", "3")
    with pytest.raises(CheckpointError, match="no trained fold 2"):
        campaign.run_all(
            "numpy", gone.model_copy(update={"folds": gone.folds.model_copy(update={"train": (2,)})}), NEVER
        )


def test_classes_that_are_not_there_are_named(digits: Path, tmp_path: Path) -> None:
    for classes, text in ((("1", "11"), "'11' is no class"), (("1",), "two or more")):
        with pytest.raises(DataError, match=text):
            campaign.run_all("numpy", settings(digits, tmp_path, "--data.classes", f"{list(classes)}"), NEVER)


def test_a_campaign_trains_its_second_heads_once_and_fits_them(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in (campaign.plots, campaign.report):
        monkeypatch.setattr(part, "write", lambda *_: None)
    words = ["--data.root", str(digits), "--out", str(tmp_path), "--model", "test_resnet", "--weights", "none"]
    words += ["--data.image_size", "32", "--train.epochs", "1", "--train.compile", "off", "--data.audit", "false"]
    words += ["--folds.kind", "stratified", "--folds.count", "2", "--tta.views", "[original, hflip]"]
    words += ["--ensemble.pairs", "1", "--mode"]
    assert cli.main("torch", [*words, "train"]) == 0
    assert cli.main("torch", [*words, "fit"]) == 0
    (folder,) = tmp_path.iterdir()
    (made,) = folder.glob("members/*/pairs/*")
    assert (made / "fold_results.yaml").exists() and len(list(made.glob("fold_*/oof_*hflip.npz"))) == 2
    assert "second head " in capsys.readouterr().out
    assert cli.main("torch", [*words, "fit"]) == 0
    assert "is made of these folds already" in capsys.readouterr().out
