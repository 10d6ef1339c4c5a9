"""Renamed settings and flags: what people write is refused with the new name, what old runs wrote is read."""

from __future__ import annotations

import pytest
import yaml

from config import load, renamed, usage
from config.errors import ConfigError
from config.program import removed_flags
from infer import __main__ as infer
from training import __main__ as training

NEW = [*renamed.SETTINGS.values()]


def test_every_new_name_is_a_setting_and_no_old_one_is() -> None:
    assert set(NEW) <= usage.leaves().keys()
    assert not (renamed.SETTINGS.keys() | renamed.REMOVED.keys()) & usage.leaves().keys()


@pytest.mark.parametrize(("old", "new"), renamed.SETTINGS.items())
def test_an_old_name_is_refused_with_the_new_one_on_the_command_line_and_in_a_file(old, new, tmp_path) -> None:
    with pytest.raises(ConfigError, match=f"{old} is now {new}"):
        load.parse(["--data.root", "x", f"--{old}", "1"], "train")
    section, _, key = old.partition(".")
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"data": {"root": "x"}} | {section: {key: 1}}))
    with pytest.raises(ConfigError, match=f"{old} is now {new} .*line"):
        load.read(file)


def test_a_removed_setting_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"ensemble\.pairs: second heads .* were removed .*leave it out"):
        load.parse(["--data.root", "x", "--ensemble.pairs", "1"], "train")


@pytest.mark.parametrize(
    ("path", "old", "new"), [(p, o, n) for p, both in renamed.VALUES.items() for o, n in both.items()]
)
def test_an_old_value_is_refused_with_the_new_one(path, old, new) -> None:
    with pytest.raises(ConfigError, match=f"{path}: {old} is now {new}"):
        load.parse(["--data.root", "x", f"--{path}", old], "train")


def old_run(tmp_path) -> dict:
    """What an earlier version wrote as `config.yaml`: today's settings under their old names."""
    values = yaml.safe_load(load.to_yaml(load.parse(["--data.root", "x", "--model", "resnet18"], "train")))
    for old, new in renamed.SETTINGS.items():
        (a, b), (section, key) = old.split("."), new.split(".")
        values.setdefault(a, {})[b] = values[section].pop(key)
    for path, both in renamed.VALUES.items():
        section, key = path.split(".")
        values[section][key] = next(iter(both))
    values["ensemble"]["pairs"] = 0
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    return values


def test_the_settings_of_an_old_run_and_of_its_checkpoints_are_read_under_todays_names(tmp_path) -> None:
    values = old_run(tmp_path)
    wanted = load.parse(["--data.root", "x", "--model", "resnet18"], "train").model_dump()
    for path, both in renamed.VALUES.items():
        section, key = path.split(".")
        wanted[section][key] = next(iter(both.values()))
    assert load.read(tmp_path / "config.yaml").model_dump() == wanted
    assert load.of_checkpoint(values).model_dump() == wanted


def test_an_old_run_is_resumed_by_its_folder_alone(tmp_path) -> None:
    old_run(tmp_path)
    assert load.parse(["--resume", str(tmp_path)], "train").model == "resnet18"


def test_old_names_in_a_search_space_are_read_too() -> None:
    for old, new in renamed.SETTINGS.items():
        values = renamed.upgrade_values({"tune": {"space": {old: {"low": 1}}}})
        assert values == {"tune": {"space": {new: {"low": 1}}}}


def test_old_values_among_the_choices_of_a_search_are_read_too() -> None:
    for path, both in renamed.VALUES.items():
        space = {path: {"choices": [*both, "cosine"]}, "optim.lr": None}
        read = renamed.upgrade_values({"tune": {"space": space}})["tune"]["space"]
        assert read == {path: {"choices": [*both.values(), "cosine"]}, "optim.lr": None}


@pytest.mark.parametrize(("old", "new"), removed_flags.RENAMED.items())
def test_an_old_flag_is_refused_with_the_new_one(old, new) -> None:
    with pytest.raises(ConfigError, match=f"{old} is now {new}"):
        removed_flags.refuse(["x", f"{old}=1"], "python -m infer")


@pytest.mark.parametrize(("command", "words"), [(infer, ["fit", "run", "--pairs", "3"]), (training, ["pair", "run"])])
def test_a_removed_command_or_flag_says_so(command, words, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(words) == 2
    assert "were removed" in capsys.readouterr().err


@pytest.mark.parametrize(("old", "new"), renamed.SWITCHES.items())
def test_an_old_switch_of_augmentation_is_refused_with_its_operation(old, new, tmp_path) -> None:
    line = rf"^augment\.{old} is now augment\.ops: {{{new}: \.\.\.}} \(command line\)$"
    with pytest.raises(ConfigError, match=line):
        load.parse(["--data.root", "x", f"--augment.{old}", "true"], "train")
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"data": {"root": "x"}, "augment": {old: None}}))
    with pytest.raises(ConfigError, match=rf"augment\.{old} is now augment\.ops: {{{new}: \.\.\.}} \(.*line"):
        load.read(file)


def test_old_switches_in_runs_campaigns_checkpoints_and_search_spaces_become_operations(tmp_path) -> None:
    names = list(renamed.SWITCHES)
    old = {name: (True, False, None)[number % 3] for number, name in enumerate(names)}
    wanted = {new: old[name] for name, new in renamed.SWITCHES.items() if old[name] is not None}
    whole = yaml.safe_load(load.to_yaml(load.parse(["--data.root", "x"], "train")))
    del whole["augment"]["ops"]
    whole["augment"] |= old
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(whole))
    member = {"name": "a", "augment": {"blur": True, "hue": None}}
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump({"data": {"root": "x"}, "members": [member]}))
    assert load.read(tmp_path / "config.yaml").augment.ops == wanted
    assert load.of_checkpoint(whole).augment.ops == wanted
    (found,) = load.read_members(tmp_path / "campaign.yaml")
    assert found.settings.augment.ops == {"gaussian_blur": True}
    space = {"augment.erase": {"choices": ["true", "false"]}}
    assert renamed.upgrade_values({"tune": {"space": space}}) == {
        "tune": {"space": {"augment.ops.random_erasing": space["augment.erase"]}}
    }


@pytest.mark.parametrize(("name", "says"), [("optim.head_lr", "is now optim.head_lr_mult"), ("optim.lrr", "no such")])
def test_a_search_over_a_setting_that_is_gone_is_refused_in_every_mode(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}.*{says}.*\(tune\.space\)"):
        load.parse(["--data.root", "x", "--tune.space", f"{{{name}: {{low: 1, high: 2}}}}"], "train")
