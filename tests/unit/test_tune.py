"""Searching for settings on the NumPy engine: what it leaves, going on, fewer images, wrong spaces and storages."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
import yaml

from config import load
from config.errors import BackendUnavailable, ConfigError, Interrupted
from data import folds, sources
from training import cli
from training.campaign import pipeline, start, trial, tune
from training.report import summary

TUNE = """
model: convnext_atto
weights: none
folds: {strategy: stratified, n_splits: 2}
data: {image_size: 16, workers: 1, audit: false}
train: {epochs: 4, batch_size: 8}
schedule: {warmup_epochs: 2}
augment: {level: none}
tune:
  trials: 6
  proxy_epochs: 2
  space:
    optim.lr: {low: 1e-3, high: 1, log: true}
    train.batch_size: {choices: [8, 16]}
"""
OPTIMIZED = "train_optimized_*.yaml"


@pytest.fixture
def words(digits: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "tune.yaml").write_text(TUNE)
    return ["--config", str(tmp_path / "tune.yaml"), "--data.root", str(digits), "--out", str(tmp_path / "runs")]


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the plots, the pages and the audits of single runs, which have tests of their own."""
    for part in (summary.plots, summary.report):
        monkeypatch.setattr(part, "write", lambda *_: None)
    monkeypatch.setattr(summary.audit, "after", lambda _: [])


def trials(root: Path) -> list[dict[str, str]]:
    (file,) = root.rglob("trials.csv")
    with file.open(newline="") as stream:
        return [{**row, "seconds": ""} for row in csv.DictReader(stream)]


def only(root: Path, pattern: str) -> Path:
    (found,) = root.rglob(pattern)
    return found


def test_a_search_writes_a_file_that_trains_a_picture_and_a_table_and_is_not_done_again(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main("numpy", [*words, "--mode", "tune"]) == 0
    rows = trials(tmp_path)
    scores = [float(row["macro_f1"]) for row in rows if row["state"] == "COMPLETE"]
    assert len(rows) == 6
    assert scores == sorted(scores, reverse=True)
    assert {row["train.batch_size"] for row in rows} <= {"8", "16"}
    assert all(1e-3 <= float(row["optim.lr"]) <= 1 for row in rows)
    best = load.read(only(tmp_path, OPTIMIZED))
    assert best.optim.lr == pytest.approx(float(rows[0]["optim.lr"]))
    assert (best.train.batch_size, best.train.epochs) == (int(rows[0]["train.batch_size"]), 4), "no proxy in it"
    assert only(tmp_path, "study.png").stat().st_size > 10_000
    assert not list(tmp_path.rglob("*.safetensors")), "trials leave no weights"
    history = only(tmp_path, f"{rows[0]['folder']}/fold_0/history.csv").read_text()
    assert history.count("\n") == 3, "a trial has the proxy's two epochs"
    capsys.readouterr()
    assert cli.main("numpy", [*words, "--mode", "tune"]) == 0
    assert "trial" not in capsys.readouterr().out
    assert len(list(tmp_path.rglob(OPTIMIZED))) == 1


def test_full_goes_on_with_what_was_found_and_later_commands_know_it(words: list[str], tmp_path: Path) -> None:
    assert cli.main("numpy", [*words, "--mode", "full", "--tune", "--tune.trials", "2"]) == 0
    folder = only(tmp_path, "campaign.yaml").parent
    wanted = load.read(only(tmp_path, OPTIMIZED))
    got = load.read(folder / "members" / "convnext_atto" / "config.yaml")
    assert (got.optim.lr, got.train.batch_size) == (wanted.optim.lr, wanted.train.batch_size)
    assert cli.main("numpy", ["--mode", "train", "--resume", str(folder)]) == 0
    assert cli.main("numpy", [*words, "--mode", "full", "--tune", "--tune.trials", "2"]) == 0


def test_a_trained_campaign_is_not_tuned_over(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main("numpy", [*words, "--mode", "train", "--train.epochs", "2", "--fold", "0"]) == 0
    assert cli.main("numpy", [*words, "--mode", "full", "--train.epochs", "2", "--tune"]) == 2
    assert "go on without --tune, or begin a new campaign with --resume never" in capsys.readouterr().err


def searched(words: list[str], stop: Callable[[], bool]) -> None:
    command = load.parse_command([*words, "--mode", "tune"], "test")
    pipeline.work(start.begin("numpy", command.members, stop), command.request)


def test_a_stopped_search_goes_on_and_ends_as_the_undisturbed_one(words: list[str], tmp_path: Path) -> None:
    left = 25  # questions, about ten a trial

    def stop() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    words += ["--tune.pruner", "none", "--tune.trials", "4"]
    with pytest.raises(Interrupted):
        searched(words, stop)
    begun = sum(1 for _ in tmp_path.rglob("history.csv"))
    assert 1 <= begun < 4
    searched(words, lambda: False)
    other = [str(tmp_path / "other") if word == str(tmp_path / "runs") else word for word in words]
    searched(other, lambda: False)
    ended = [
        sorted((row["folder"], row["macro_f1"]) for row in trials(tmp_path / name) if row["state"] == "COMPLETE")
        for name in ("runs", "other")
    ]
    assert len(ended[0]) == 4
    assert ended[0] == ended[1]


def test_the_trial_of_a_process_that_was_killed_is_tried_again(words: list[str], tmp_path: Path) -> None:
    searched([*words, "--tune.trials", "1"], lambda: False)
    url = f"sqlite:///{only(tmp_path, 'study.db')}"
    (name,) = optuna.get_all_study_names(url)
    study = optuna.load_study(study_name=name, storage=url)
    dead = study.ask()
    tried = dead.suggest_float("optim.lr", 1e-3, 1, log=True)
    dead.suggest_categorical("train.batch_size", ("8", "16"))
    host = next(one.user_attrs[tune._WORKER][0] for one in study.trials if tune._WORKER in one.user_attrs)
    dead.set_user_attr(tune._WORKER, [host, 2**22 + 1, 0.0])
    searched([*words, "--tune.trials", "2"], lambda: False)
    again = [row for row in trials(tmp_path) if float(row["optim.lr"]) == pytest.approx(tried)]
    assert sorted(row["state"] == "FAIL" for row in again) == [False, True]


def test_thinning_keeps_the_share_of_each_side_and_every_class(all_digits: Path) -> None:
    table = sources.load(all_digits)
    fold_of = folds.make(table.labels, "stratified", 3)
    thin, split = trial.thinned(table, fold_of, 12, number=1, seed=3)
    assert set(thin.ids) < set(table.ids)
    counts = np.bincount(thin.labels[split == 1]), np.bincount(thin.labels[split != 1])
    assert (counts[0] == 4).all() and (counts[1] == 8).all()
    again, _ = trial.thinned(table, fold_of, 12, number=1, seed=3)
    other, _ = trial.thinned(table, fold_of, 12, number=1, seed=4)
    assert again.ids == thin.ids != other.ids
    place = dict(zip(table.ids, table.labels, strict=True))
    assert all(place[name] == label for name, label in zip(thin.ids, thin.labels, strict=True))
    tiny, sides = trial.thinned(table, fold_of, 2, number=1, seed=3)
    assert len(set(tiny.labels[sides == 1])) == len(set(tiny.labels[sides != 1])) == 10


def test_what_is_counted_in_epochs_follows_the_proxy(words: list[str]) -> None:
    more = ["--optim.freeze_epochs", "4", "--mix.off_epochs", "1", "--data.image_size", "64"]
    got = trial.proxy(load.parse([*words, *more, "--tune.proxy_image_size", "32"], "test"))
    assert (got.train.epochs, got.schedule.warmup_epochs, got.optim.freeze_epochs, got.mix.off_epochs) == (2, 1.0, 2, 0)
    assert got.data.image_size == 32


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--tune.space", "{optm.lr: {low: 1, high: 2}}"], r"optm\.lr: no such setting \(tune\.space\); did you mean"),
        (["--tune.space", "{data.root: {choices: [a]}}"], r"data\.root is not searched"),
        (["--tune.space", "{loss.label_smoothing: {low: 0, high: 2}}"], r"loss\.label_smoothing: found 2\.0"),
        (["--tune.space", "{augment.level: {choices: [hrad]}}"], r"augment\.level: found 'hrad' \(tune\.space\)"),
        (["--tune.storage", "nonsense"], r"tune\.storage: nonsense cannot be used"),
        (["--tune.fold", "5"], r"tune\.fold: there is no fold 5; there are \[0, 1\]"),
    ],
)
def test_a_wrong_search_is_refused_before_the_first_trial(more: list[str], said: str, words: list[str]) -> None:
    with pytest.raises(ConfigError, match=said):
        searched([*words, *more], lambda: False)


@pytest.mark.parametrize(
    "space", ["{optim.lr: {low: 2, high: 1}}", "{optim.lr: {high: 1}}", "{optim.lr: {choices: []}}"]
)
def test_a_range_that_is_none_is_named(space: str, words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"tune\.space: found .*expected optim\.lr with low < high"):
        load.parse([*words, "--tune.space", space], "test")


def test_an_entry_of_a_space_replaces_the_files_as_a_whole(words: list[str]) -> None:
    space = load.parse([*words, "--tune.space", "{optim.lr: {choices: [0.1]}, train.batch_size: null}"], "t").tune.space
    assert space["train.batch_size"] is None
    assert (space["optim.lr"].low, space["optim.lr"].choices) == (None, ("0.1",))


def test_without_optuna_it_names_the_install(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "installed", lambda _: False)
    with pytest.raises(BackendUnavailable, match=r'pip install -e "\.\[tune\]"'):
        searched(words, lambda: False)


def test_every_recipes_space_can_be_searched() -> None:
    for name in load.recipes():
        for member in load.parse_command(["--config", name, "--data.root", "images"], prog="test").members:
            tune._check_space(member.settings)
            assert yaml.safe_load(load.to_yaml(trial.proxy(member.settings)))["train"]["epochs"]
