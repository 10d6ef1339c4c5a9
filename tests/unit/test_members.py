"""Recipes of several models: the settings of each member, the choice of one, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config import load
from config.errors import ConfigError
from config.members import Member
from config.schema import Settings

ROOT = ["--data.root", "images"]
TWO = """
train: {epochs: 7}
optim: {lr: 1e-3}
members:
  - name: small
    model: resnet18
    weight: 2
  - name: big
    model: resnet50
    optim: {lr: 1e-5}
    train: {batch_size: 4}
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str, name: str = "run.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def parse(*argv: str) -> Settings:
    return load.parse([*ROOT, *argv], "train_torch.py")


def members(*argv: str) -> dict[str, Member]:
    return {member.name: member for member in load.parse_command([*ROOT, *argv], prog="test").members}


def faults(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(*argv)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    return lines if len(lines) == 1 else lines[1:]


def test_a_member_has_its_own_settings_over_those_of_its_file(write: Any) -> None:
    found = members("--config", write(TWO))
    assert {name: member.weight for name, member in found.items()} == {"small": 2.0, "big": 1.0}
    small, big = found["small"].settings, found["big"].settings
    assert (small.model, small.optim.lr, small.train.batch_size, small.train.epochs) == ("resnet18", 1e-3, None, 7)
    assert (big.model, big.optim.lr, big.train.batch_size, big.train.epochs) == ("resnet50", 1e-5, 4, 7)


def test_the_command_line_stands_over_a_member_and_chooses_it(write: Any) -> None:
    path = write(TWO)
    got = parse("--config", path, "--member", "big", "--train.epochs", "2", "--optim.lr", "3e-4")
    assert (got.model, got.train.epochs, got.train.batch_size, got.optim.lr) == ("resnet50", 2, 4, 3e-4)
    assert got.name is None, "a member's name is not the run folder's"


def test_a_file_stands_over_the_members_of_its_recipe(
    write: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(TWO, "two.yaml")
    monkeypatch.setattr(load, "RECIPES", tmp_path)
    got = members("--config", write("recipe: two\noptim: {lr: 0.5}\n"))
    assert [member.settings.optim.lr for member in got.values()] == [0.5, 0.5]
    assert got["big"].settings.train.batch_size == 4
    other = members("--config", write("recipe: two\nmembers: [{name: only, model: resnet34}]\n"))
    assert [(name, member.settings.train.epochs) for name, member in other.items()] == [("only", 7)]
    assert parse("--config", write("recipe: two\nmembers: []\n")).train.epochs == 7


def test_the_settings_of_a_member_are_written_and_read_as_a_plain_file(write: Any) -> None:
    got = parse("--config", write(TWO), "--member", "big")
    assert load.read(Path(write(load.to_yaml(got), "config.yaml"))) == got


def test_without_a_choice_the_members_are_listed(write: Any) -> None:
    path = write(TWO)
    assert faults("--config", path) == [
        "member: not given, and there are several; choose one of small, big by --member NAME, or all by --mode full"
    ]
    with pytest.raises(ConfigError, match="choose one of small, big"):
        load.read(Path(write(f"{TWO}\ndata: {{root: images}}\n")))


def test_an_unknown_member_names_the_nearest(write: Any) -> None:
    (line,) = faults("--config", write(TWO), "--member", "bog")
    assert line == "member: found 'bog' (command line); did you mean big? there are small, big"


def test_a_member_where_none_are_listed_is_refused() -> None:
    (line,) = faults("--config", "demo", "--member", "big")
    assert "neither file nor recipe lists members" in line
    assert faults("--member") == ["member: no value given (command line); expected the name of a member"]


def test_all_faults_of_all_members_are_said_at_once_with_their_lines(write: Any) -> None:
    path = write(
        "train: {epochs: none}\n"
        "members:\n"
        "  - name: a\n"
        "    optim:\n"
        "      lr: fast\n"
        "  - model: resnet18\n"
        "    weight: -1\n"
        "  - name: c\n"
        "    tran: {}\n"
        "    folds: {count: 3}\n"
        "    data: {root: elsewhere, image_size: 3}\n"
        "  - name: a\n"
        "    loss: {label_smoothing: 1}\n"
        "  - oops\n"
    )
    got = faults("--config", path, "--member", "a")
    starts = [
        "members[1].name: not given",
        f"members[1].weight: found '-1' ({path}, line 7); expected a number >= 0",
        f"members[2].folds: is the same for all members ({path}, line 10); write it above them",
        f"members[2].data.root: is the same for all members ({path}, line 11); write it above them",
        f"members[3].name: found 'a' ({path}, line 12), which members[0] has; give each its own",
        f"members[4]: found 'oops' ({path}, line 2); expected `name: NAME`",
        f"train.epochs: found 'none' ({path}, line 1)",
        f"members[0].optim.lr: found 'fast' ({path}, line 5); expected a number > 0",
        f"members[2].tran: no such setting ({path}, line 9); did you mean",
        f"members[2].data.image_size: found '3' ({path}, line 11)",
        f"members[3].loss.label_smoothing: found '1' ({path}, line 13)",
    ]
    for start in starts:
        assert [line for line in got if line.startswith(start)], f"{start} is not among {got}"
    assert len(got) == len(starts), got


def test_settings_of_a_member_that_do_not_fit_together_are_found(write: Any) -> None:
    path = write("train: {epochs: 3}\nmembers:\n  - name: a\n    schedule: {warmup_epochs: 5}\n  - name: b\n")
    (line,) = faults("--config", path, "--member", "b")
    assert line.startswith(f"members[0].schedule.warmup_epochs: found '5' ({path}, line 4); expected at most train.epo")


@pytest.mark.parametrize("text", ["members: 3\n", "members: {a: 1}\n", "members: {}\n", "members: ''\n"])
def test_members_that_are_no_list_are_refused(write: Any, text: str) -> None:
    (line,) = faults("--config", write(text))
    assert "expected a list of `- name: NAME`" in line


KEYS = ["name", "weight", "members", "recipe", "model", "folds", "data", "root", "image_size", "optim", "lr", "tta", ""]
VALUES = st.recursive(
    st.sampled_from([None, 0, -1, "a", "b", "", "1e-3", 384, True]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4) | VALUES, max_size=4) | VALUES)
def test_whatever_members_holds_is_settings_or_a_fault_of_one_line_each(write: Any, listed: Any) -> None:
    path = write(yaml.safe_dump({"members": listed}))
    try:
        found = load.parse_command([*ROOT, "--config", path], prog="test").members
    except ConfigError as error:
        assert "pydantic" not in str(error)
        assert len(str(error).splitlines()) < 60
    else:
        assert all(isinstance(member.settings, Settings) for member in found)


def test_members_are_written_as_one_file_and_read_back(write: Any) -> None:
    found = load.parse_command(
        [*ROOT, "--config", write(TWO), "--folds.strategy", "stratified", "--tta.views", "[hflip]"], prog="test"
    ).members
    assert load.read_members(Path(write(load.members_yaml(found), "campaign.yaml"))) == found
    alone = load.parse_command([*ROOT, "--optim.lr", "0.5"], prog="test").members
    assert load.read_members(Path(write(load.members_yaml(alone), "campaign.yaml"))) == alone


def test_names_that_are_one_folder_on_a_mac_are_refused(write: Any) -> None:
    path = write("members:\n  - name: Swin\n  - name: swin\n")
    (line,) = faults("--config", path)
    assert line.startswith("members[1].name: found 'swin'")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mode", "ful"], "mode: found 'ful' (command line); did you mean full? there are audit, tune, train"),
        (["--mode"], "mode: no value given (command line); expected one of audit, tune, train"),
        (["--mode", "full", "--fold", "1"], "fold: --mode full (command line) is for all members and folds"),
        (["--mode", "fit", "--member", "big"], "member: --mode fit (command line) is for all members and folds"),
        (["--mode", "train", "--fold", "-1"], "fold: found '-1' (command line); expected a whole number >= 0"),
        (["--mode", "train", "--tune"], "tune: goes with --mode full (command line)"),
    ],
)
def test_what_is_wrong_with_a_mode_is_said(words: list[str], said: str, write: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load.parse_command([*ROOT, "--config", write(TWO), *words], "train_torch.py")
    assert said in str(caught.value)


def test_one_fold_of_one_member_is_asked_for_in_short(write: Any) -> None:
    words = [*ROOT, "--config", write(TWO), "--folds.strategy", "stratified", "--member", "big", "--fold", "2"]
    assert load.parse(words, "test").folds.train == (2,)
    got = load.parse_command([*words, "--mode", "train"], "test")
    assert (got.request.mode, got.request.member, got.request.fold, len(got.members)) == ("train", "big", 2, 2)
    assert got.members[1].settings.folds.train is None
    with pytest.raises(ConfigError, match=r"folds\.train: found \[7\] \(command line\); expected numbers below folds"):
        load.parse([*words, "--fold", "7"], "test")


def test_a_campaign_is_resumed_with_the_file_that_began_it(tmp_path: Path) -> None:
    began = {"data": {"root": "photos"}, "members": [{"name": name, "model": "resnet18"} for name in ("a", "b")]}
    (tmp_path / "members.yaml").write_text(yaml.safe_dump(began))
    listed = load.parse_command(["--config", str(tmp_path / "members.yaml")], "train").members
    (tmp_path / load.CAMPAIGN).write_text(load.members_yaml(listed))
    words = ["--config", str(tmp_path / "members.yaml"), "--resume", str(tmp_path)]
    again = load.parse_command(words, "train").members
    assert [member.settings.data.resampling for member in again] == [None, None]
