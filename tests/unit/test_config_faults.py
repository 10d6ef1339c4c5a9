"""The settings: what is wrong with a file or a command line is said all at once, with its place and the remedy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import load, usage
from config.errors import ConfigError
from config.schema import Settings

ROOT = ["--data.root", "images"]


def parse(*argv: str) -> Settings:
    return load.parse([*ROOT, *argv], "train_torch.py")


def faults(*argv: str) -> list[str]:
    """The fault lines of a command line without the implied data root."""
    with pytest.raises(ConfigError) as caught:
        load.parse(argv, "train_torch.py")
    lines = [line.strip() for line in str(caught.value).splitlines()]
    return lines if len(lines) == 1 else lines[1:]


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str | bytes, name: str = "run.yaml") -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_a_misspelled_setting_is_not_missing_too() -> None:
    [line] = faults("--data.rot", "photos")
    assert line.startswith("data.rot: no such setting (command line); did you mean data.root?")


def test_an_unknown_key_in_a_file_names_line_and_nearest(write: Any) -> None:
    path = write("model: convnext_atto\n\ntrain:\n  epochs: 3\n  batchsize: 8\n")
    (line,) = faults(*ROOT, "--config", path)
    assert line.startswith(f"train.batchsize: no such setting ({path}, line 5); did you mean train.batch_size?")
    assert "val_batch_size" in line


def test_an_unknown_option_names_the_nearest() -> None:
    (line,) = faults(*ROOT, "--optim.weight_decy", "3")
    assert line.startswith("optim.weight_decy: no such setting (command line); did you mean optim.weight_decay?")


@pytest.mark.parametrize("option", ["--train.epoch", "--train.ep", "--seeed", "--print_conf"])
def test_options_cannot_be_abbreviated(option: str) -> None:
    assert "no such setting" in faults(*ROOT, option, "3")[0]


def test_a_key_of_another_section_is_found() -> None:
    assert "did you mean train.epochs?" in faults(*ROOT, "--epochs", "3")[0]


def test_a_dotted_key_in_a_file_says_how_to_write_it(write: Any) -> None:
    (line,) = faults(*ROOT, "--config", write("train.epochs: 3\n"))
    assert "write `train:` and, indented below it, `epochs: VALUE`" in line


def test_a_dotted_key_beside_its_section_is_told_apart(write: Any) -> None:
    lines = faults(*ROOT, "--config", write("train.epochs: 3\ntrain: {epochs: many}\n"))
    assert sorted(line.split(" ")[1] for line in lines) == ["a", "found"]


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("train.epochs", "many", "a whole number >= 1"),
        ("train.epochs", "2.5", "a whole number >= 1"),
        ("train.epochs", "true", "a whole number >= 1"),
        ("train.epochs", "null", "a whole number >= 1"),
        ("train.epochs", "0", "a whole number >= 1"),
        ("train.precision", "fp8", "one of auto, fp32, tf32, bf16, fp16"),
        ("data.resize_mode", "zoom", "one of crop, squash, letterbox or null"),
        ("augment.hflip", "maybe", "true or false"),
        ("optim.lr", "nan", "a number > 0 or null"),
        ("optim.lr", "inf", "a number > 0 or null"),
        ("data.image_size", "8", "a whole number from 16 to 4096 or null"),
        ("data.std", "[1, 1]", "a list of 3 numbers > 0 or null"),
        ("data.std", "[1, 1, 0]", "a list of 3 numbers > 0 or null"),
        ("optim.betas", "0.9", "a list of 2 numbers >= 0 and < 1"),
        ("folds.train", "[0, 0]", "each entry once only"),
        ("folds.n_splits", "1", "a whole number from 2 to 1000"),
        ("tta.views", "[]", "a list of names"),
        ("model", "[a, b]", "text"),
        (
            "name",
            "a/b",
            "a name of at most 128 letters, digits, . _ + - (the first one a letter, a digit or _) or null",
        ),
        ("model", "''", "text, not an empty one"),
        ("out", "''", "a path, not an empty one"),
        ("ensemble.calibration", "[platt]", "a list of none, temperature, vector, isotonic"),
        ("ema.decay", "1", "a number >= 0 and < 1"),
    ],
)
def test_a_wrong_value_says_what_was_found_where_and_what_is_allowed(
    write: Any, option: str, value: str, expected: str
) -> None:
    (line,) = faults(*ROOT, f"--{option}={value}")
    assert line.startswith(f"{option}: found ")
    assert f"(command line); expected {expected}" in line
    section, _, key = option.rpartition(".")
    path = write(f"# first\n{section}:\n  {key}: {value}\n" if section else f"# first\n\n{key}: {value}\n")
    (line,) = faults(*ROOT, "--config", path)
    assert f"({path}, line 3); expected {expected}" in line


def test_a_path_may_begin_at_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse("--out", "~/runs").out == tmp_path / "runs"


def test_a_wrong_value_of_any_setting_is_explained_in_words() -> None:
    others, refused = [path for path in usage.leaves() if path != "resume"], set()
    for value in ("a/b c", "''", "-1e9", "[]", "[-1.5, {}]", "{a: 1}", "nan"):
        for line in faults(*(f"--{path}={value}" for path in others)):
            refused.add(line.partition(":")[0])
            # Neither a regular expression nor what pydantic and Python say.
            assert re.search("; expected |: no such setting", line) and not re.search(
                r"\\|\^|Input|should|Error|type=", line
            ), line
    assert refused >= set(others)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--mix.off_epochs", "21"], "mix.off_epochs: found '21' (command line); expected at most train.epochs (20)"),
        (
            ["--train.epochs=1", "--schedule.warmup_epochs=2"],
            "schedule.warmup_epochs: found '2' (command line); expected at most train.epochs (1)",
        ),
        (
            ["--folds.strategy=holdout", "--folds.train", "[1]"],
            "folds.train: found [1] (command line); expected null or [0], as a holdout",
        ),
        (["--folds.strategy=stratified", "--folds.train=[5]"], "expected numbers below folds.n_splits (5)"),
        (
            ["--data.id_column=ID", "--data.target_column=ID"],
            "data.target_column: found 'ID' (command line); expected another column",
        ),
        (["--optim.name=sgd", "--optim.momentum=0"], "expected more than 0 where optim.nesterov is not false"),
        (
            ["--optim.momentum=0.5"],
            "optim.momentum: found '0.5' (command line); expected null where optim.name is adamw",
        ),
        (["--optim.freeze_epochs=21"], "expected at most train.epochs (20)"),
        (["--train.batch_size=8", "--train.micro_batch=3"], "expected a divisor of train.batch_size (8)"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(argv: list[str], line: str) -> None:
    (found,) = faults(*ROOT, *argv)
    assert line in found


def test_folds_from_a_file_may_have_any_number() -> None:
    assert parse("--folds.file", "folds.csv", "--folds.train", "[7]").folds.train == (7,)


def test_all_faults_come_at_once(write: Any) -> None:
    path = write(
        "modl: x\ntrain:\n  epochs: 5\n  precision: fp8\nfolds: 3\nmix:\n  off_epochs: 6\ndrop:\n  rate: 2\n  rat: 1\n"
    )
    lines = faults("--config", path, "--optim.lr", "fast", "stray", "--bogus=1", "--ema.decay", "--data.std", "[1, 1]")
    heads = {line.split(" ")[0] for line in lines}
    assert len(lines) == len(heads)
    assert heads == {
        *("modl:", "train.precision:", "folds:", "mix.off_epochs:", "drop.rate:", "drop.rat:"),
        *("optim.lr:", "'stray'", "bogus:", "ema.decay:", "data.root:", "data.std:"),
    }
    text = "\n".join(lines)
    assert "pydantic" not in text
    assert "http" not in text
    assert "Traceback" not in text


def test_a_wrong_value_brings_no_faults_of_its_default() -> None:
    (line,) = faults(*ROOT, "--train.epochs", "fifty", "--mix.off_epochs", "30")
    assert line.startswith("train.epochs:")


def test_one_fault_is_one_line_and_ends_with_code_2() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("--train.epochs", "x")
    assert str(caught.value).count("\n") == 0
    assert caught.value.exit_code == 2


def test_a_missing_data_root_is_said_with_the_option() -> None:
    assert faults() == ["data.root: not given; expected a path, from --data.root VALUE or the file"]


def test_an_option_does_not_swallow_the_next_one() -> None:
    (line,) = faults(*ROOT, "--name", "--train.epochs", "3")
    assert line.startswith("name: no value given (command line)")


def test_a_section_is_no_option() -> None:
    (line,) = faults(*ROOT, "--train", "{epochs: 3}")
    assert "is a section" in line
    assert "epochs, batch_size" in line


def test_two_configs_are_refused() -> None:
    assert faults(*ROOT, "--config", "demo", "--config", "finetune")[0].startswith("config: given 2 times")


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("seed: 1\nmodel: a\nseed: 2\n", 3, "second time"),
        ("train:\n  epochs: 1\n  epochs: 1\n", 3, "second time"),
        ("- seed\n- 1\n", 1, "expected settings"),
        ("just words\n", 1, "expected settings"),
        ("model: a\ntrain: [1, 2\n", 3, "expected"),
        ("model: a\n\tseed: 3\n", 2, "'\\t'"),
        (b"model: a\n# caf\xe9\n", 2, "UTF-8"),
        ("model: a\nname: \x07\n", 2, "not allowed"),
        ('a: b\nname: "\\0"\n', 2, "character"),
        ('a: b\nname: "\\ud800"\n', 2, "character"),
        ("seed: &one 1\nfolds:\n  count: *one\n", 3, "aliases"),
        ("seed: 1\n? [a]\n: 3\n", 2, "a key must be a name"),
        ("seed: !!python/object/apply:os.system ['touch owned']\n", 1, ""),
        ("name: !!python/name:os.system\n", 1, "tag"),
        ("seed: " + "[" * 5000, 1, "nested too deeply"),
        ("seed: 1\n---\nseed: 2\n", 2, "another document"),
    ],
)
def test_a_bad_file_is_one_line_with_its_number(write: Any, content: str | bytes, line: int, problem: str) -> None:
    path = write(content)
    (found,) = faults(*ROOT, "--config", path)
    assert f"{path}, line {line}" in found
    assert problem in found
    assert not Path("owned").exists()


def test_a_file_that_cannot_be_read_is_one_line(write: Any, tmp_path: Path) -> None:
    assert "No such file" in faults(*ROOT, "--config", str(tmp_path / "none.yaml"))[0]
    assert "cannot be read" in faults(*ROOT, "--config", f"{tmp_path}/.")[0]
    assert "another file?" in faults(*ROOT, "--config", write(b"a" * 300_000))[0]
    assert "not valid YAML" in faults(*ROOT, "--config", write('name: "\\UFFFFFFFF"\n'))[0]


def test_an_unreadable_file_is_told_beside_the_options_at_fault(tmp_path: Path) -> None:
    lines = faults("--bogus", "1", "--config", str(tmp_path / "none.yaml"))
    assert [line.split(":")[0] for line in lines] == ["bogus", str(tmp_path / "none.yaml")]


def test_an_unknown_recipe_names_the_shipped_ones(write: Any) -> None:
    (line,) = faults(*ROOT, "--config", "dmo")
    assert f"did you mean demo? there are {', '.join(load.recipes())};" in line
    path = write("seed: 1\nrecipe: finetun\n")
    assert f"({path}, line 2) is no recipe; did you mean finetune?" in faults(*ROOT, "--config", path)[0]


def test_recipes_that_build_on_each_other_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("recipe: b\nseed: 1\n")
    (tmp_path / "b.yaml").write_text("recipe: a\n")
    (tmp_path / "c.yaml").write_text("recipe: base\ntrain: {epochs: 9}\n")
    (tmp_path / "base.yaml").write_text("seed: 5\n")
    monkeypatch.setattr(load, "RECIPES", tmp_path)
    assert "builds on itself" in faults(*ROOT, "--config", "a")[0]
    assert (parse("--config", "c").seed, parse("--config", "c").train.epochs) == (5, 9)


# Anything at all

PIECES = [
    b"train:",
    b"  epochs: ",
    b"3",
    b"\n",
    b"recipe: demo",
    b"- ",
    b"[",
    b"]",
    b"{",
    b"}",
    b"&a ",
    b"*a",
    b"!!int ",
]
PIECES += [
    b'"\\x',
    b"'",
    b"#",
    b"? ",
    b": ",
    b"settings: ",
    b"_env_file: ",
    b"self: ",
    b"\xff",
    b"\t",
    b"%YAML 1.",
    b"|\n ",
]
PIECES += [b"data:", b" root: x", b"optim: {betas: [0, 1]}", b"null", b"<<: ", b"train.epochs: "]
RAW = st.binary(max_size=200) | st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=25).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(RAW)
def test_any_bytes_are_settings_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(raw)
    try:
        assert isinstance(parse("--config", str(path)), Settings)
    except ConfigError as error:
        str(error).encode("utf-8")


OPTIONS = ["--" + path for path in usage.leaves()]
TOKENS = st.sampled_from([*OPTIONS, "--config", "--", "-x", "[", "null", "{a: b}", "demo", "3", "--train"]) | st.text(
    max_size=9
)


@settings(max_examples=200, deadline=None)
@given(st.lists(TOKENS | st.tuples(st.sampled_from(OPTIONS), st.text(max_size=6)).map("=".join), max_size=6))
def test_any_command_line_is_settings_or_a_config_error(argv: list[str]) -> None:
    try:
        assert isinstance(load.parse(argv, "x"), Settings)
    except ConfigError as error:
        str(error).encode("utf-8")
    except SystemExit as stop:
        assert stop.code == 0
