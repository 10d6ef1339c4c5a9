"""Which gradients an MLX chip takes: measured once, kept, and measured again when what was kept is of no use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import backends.__main__ as command
from backends.mlx import tune
from ports import gradients
from tests.contract.cases import session

KEY = gradients.depthwise(7, 1, 12)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A new machine: no cache, nothing chosen in this process."""
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path))
    monkeypatch.setattr(gradients, "CHOSEN", dict(gradients.DEFAULTS))
    tune.choose.cache_clear()
    yield
    tune.choose.cache_clear()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """On what says it is a GPU, on which our gradient of 7 x 7 kernels is faster; the budgets of all measurements."""
    budgets: list[float] = []

    def measure(budget: float) -> tune.Seconds:
        budgets.append(budget)
        return {KEY: {gradients.LIBRARY: 2.0, gradients.OURS: 1.0}}

    monkeypatch.setattr(tune, "on_gpu", lambda: True)
    monkeypatch.setattr(tune, "measure", measure)
    return budgets


def test_a_cpu_takes_what_is_known_and_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "measure", lambda budget: pytest.fail("a CPU measures only when asked to"))
    told = session("mlx").describe()["gradients"]
    assert told == {**gradients.DEFAULTS, "from": "known of CPUs"}
    assert not tune.cache_file().exists()


def test_a_gpu_measures_at_first_use_and_keeps_it(measured: list[float]) -> None:
    first = tune.choose()
    assert first.ways == {**gradients.DEFAULTS, KEY: gradients.OURS} == gradients.CHOSEN
    assert first.source == "measured now"
    tune.choose.cache_clear()
    again = tune.choose()
    assert again == (first.ways, str(tune.cache_file()))
    assert len(measured) == 1
    assert measured[0] <= 2


@pytest.mark.parametrize("text", ["{", "[]", '{"max_pool": {"library": "fast"}}', '{"max_pool": {"library": 1}}'])
def test_a_damaged_file_is_measured_again_with_a_line(
    text: str, measured: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tune.cache_file()
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert tune.choose().source == "measured now"
    said = capsys.readouterr().err
    assert str(file) in said
    assert len(said.splitlines()) == len(measured) == 1
    assert json.loads(file.read_text())[KEY]


def test_another_chip_or_version_is_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {tune.cache_file()}
    monkeypatch.setattr(tune.mx, "device_info", lambda: {"device_name": "Apple M4 Pro"})
    names.add(tune.cache_file())
    monkeypatch.setattr(tune.importlib.metadata, "version", lambda _: "9.9")
    names.add(tune.cache_file())
    assert len(names) == 3
    assert tune.cache_file().name == "cpu_apple_m4_pro_9.9.json"


def test_a_folder_that_cannot_be_written_is_a_line(
    measured: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "file"))
    assert tune.choose().ways[KEY] == gradients.OURS
    assert "cannot be written" in capsys.readouterr().err
    assert measured


def test_the_budget_ends_the_measurement() -> None:
    assert tune.measure(-1.0) == {}


def test_the_command_measures_here_and_is_heard_at_the_next_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["tune", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["seconds"].keys() == gradients.DEFAULTS.keys()
    assert all(min(both.values()) > 0 for both in told["seconds"].values())
    assert tune.choose() == (told["chosen"], told["file"])
    assert sorted(Path(told["file"]).parent.iterdir()) == [Path(told["file"])], "nothing half written stays"
