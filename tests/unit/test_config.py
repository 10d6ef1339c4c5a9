"""The settings: what a user writes in files and on the command line, and what is said when it is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from config import load
from config.schema import Settings
from config.sections.data import Data
from config.sections.train import Optim, Tta

ROOT = ["--data.root", "images"]


def parse(*argv: str) -> Settings:
    return load.parse([*ROOT, *argv], "train_torch.py")


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str | bytes, name: str = "run.yaml") -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def leaves(model: type[BaseModel] = Settings, prefix: str = "") -> dict[str, str]:
    """Every setting's dotted path and description, from the models themselves."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= leaves(inner, f"{prefix}{name}.")
        else:
            found[prefix + name] = field.description or ""
    return found


# What a user may write


def test_a_data_root_is_enough() -> None:
    assert parse() == Settings(data=Data(root=Path("images")))


def test_command_line_wins_over_file_over_recipe_over_default(write: Any) -> None:
    path = write("recipe: demo\ntrain:\n  epochs: 7\n  batch_size: 5\n")
    got = parse("--config", path, "--train.batch_size", "6")
    assert (got.train.batch_size, got.train.epochs, got.model, got.seed) == (6, 7, "test_convnext", 0)
    assert got.folds.n_splits == 3  # the recipe's, beside sections that the file touches
    assert got.optim.eps == Settings(data=Data(root=Path("x"))).optim.eps


def test_the_last_of_a_repeated_option_counts() -> None:
    assert parse("--train.epochs=3", "--train.epochs", "4").train.epochs == 4


@pytest.mark.parametrize("argv", [["--optim.betas", "[0.5, .75]"], ["--optim.betas=[5e-1, 75e-2]"]])
def test_lists_are_written_as_in_yaml(argv: list[str]) -> None:
    assert parse(*argv).optim.betas == (0.5, 0.75)


def test_null_gives_back_the_default_of_the_model(write: Any) -> None:
    path = write("folds: {train: [0]}\ntrain: {batch_size: 3}\n")
    got = parse("--config", path, "--folds.train", "null", "--train.batch_size=null")
    assert got.folds.train is None
    assert got.train.batch_size is None


@pytest.mark.parametrize("text", ["007", "1e5", "2024-01-02", "no", "3.10"])
def test_names_that_look_like_something_else_stay_names(write: Any, text: str) -> None:
    assert parse("--name", text).name == text
    assert parse("--config", write(f"name: {text}\n")).name == text


def test_words_that_yaml_takes_for_booleans_keep_their_meaning(write: Any) -> None:
    got = parse("--config", write("train: {compile: off}\naugment: {hflip: no, vflip: on}\n"))
    assert (got.train.compile, got.augment.hflip, got.augment.vflip) == ("off", False, True)


def test_numbers_without_a_dot_are_numbers(write: Any) -> None:
    assert parse("--config", write("optim: {lr: 1e-4}\n")).optim.lr == 1e-4


def test_negative_numbers_are_values() -> None:
    assert parse("--data.mean", "[-1e-3, 0, 0]").data.mean == (-0.001, 0.0, 0.0)


def test_an_empty_file_and_an_empty_section_are_no_settings(write: Any) -> None:
    assert parse("--config", write("# all commented out\n")) == parse()
    assert parse("--config", write("train:\n#  epochs: 3\n")) == parse()


def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL", "SEED", "SETTINGS", "TRAIN__EPOCHS"):
        monkeypatch.setenv(name, "7")
    assert parse().seed == 0


def test_settings_cannot_be_changed_afterwards() -> None:
    got = parse()
    with pytest.raises(ValidationError):
        got.seed = 3
    with pytest.raises(ValidationError):
        got.train.epochs = 3


# Shipped recipes


@pytest.mark.parametrize("name", list(load.recipes()))
def test_every_shipped_recipe_loads(name: str) -> None:
    assert all(
        isinstance(member.settings, Settings)
        for member in load.parse_command([*ROOT, "--config", name], prog="test").members
    )


def test_the_finetune_recipe_is_the_defaults_as_it_says() -> None:
    assert parse("--config", "finetune") == parse()


def test_the_demo_flips_no_digits_and_needs_no_network() -> None:
    got = parse("--config", "demo")
    assert (got.augment.hflip, got.augment.vflip, got.weights) == (False, False, "none")


# Writing and reading back

CHANGES = [
    ["--config", "demo"],
    ["--name", "null_", "--weights", "weights/my file: #1.safetensors", "--out", "out/ünï cödé"],
    ["--data.mean", "[0.1, 0.2, 0.3]", "--data.std", "[1e-7, 2, 0.333333333333333333]", "--optim.lr", "1.28e-4"],
    ["--folds.strategy", "stratified", "--folds.train", "[0, 3]", "--tta.views", "[original, 'null', 'off']"],
    ["--weights", "off", "--name", "123"],
    ["--weights", "next\x85line \u2028 tab\t newline\n"],
]


@pytest.mark.parametrize("argv", CHANGES)
def test_written_settings_read_back_equal(write: Any, argv: list[str]) -> None:
    got = parse(*argv)
    text = load.to_yaml(got)
    assert load.read(Path(write(text))) == got
    assert yaml.safe_load(text) == got.model_dump(mode="json")  # other YAML readers agree


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@settings(max_examples=60, deadline=None)
@given(weights=TEXT, view=TEXT, lr=st.floats(min_value=1e-12, max_value=1e3))
def test_any_text_and_number_survives_writing(
    tmp_path_factory: pytest.TempPathFactory, weights: str, view: str, lr: float
) -> None:
    got = Settings(data=Data(root=Path("x")), weights=weights, optim=Optim(lr=lr), tta=Tta(views=(view,)))
    path = tmp_path_factory.getbasetemp() / "survives.yaml"
    path.write_text(load.to_yaml(got), encoding="utf-8")
    assert load.read(path) == got


def test_print_config_prints_what_loads_equal(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--config", "demo", "--train.epochs", "5"]
    with pytest.raises(SystemExit) as caught:
        parse(*argv, "--print_config")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert load.parse(["--config", write(printed)], "x") == parse(*argv)
    sections = [line.removesuffix(":") for line in printed.splitlines() if not line.startswith(" ") and line[-1] == ":"]
    assert sections == [name for name in Settings.model_fields if name in sections]


# Help


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        load.parse(["--train.epochs", "x", "--help"], "train_mlx.py")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    flowing = " ".join(printed.split())
    assert max(map(len, printed.splitlines())) <= 100
    for path, description in leaves().items():
        assert description, path
        assert f"--{path} VALUE {description}" in flowing
    assert "one of auto, fp32, tf32, bf16, fp16; default auto" in flowing
    assert "a whole number >= 1; default 20" in flowing
    assert "a path; required" in flowing
    assert "usage: train_mlx.py" in flowing
    assert "\ntrain:\n" in printed


def test_help_needs_no_framework() -> None:
    code = (
        "import sys\nfrom config.load import parse\n"
        "try:\n    parse(['--help'], 'x')\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'torch', 'mlx', 'numpy', 'timm', 'onnx', 'coremltools'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
