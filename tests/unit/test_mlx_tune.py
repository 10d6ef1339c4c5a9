"""Which gradients an MLX chip takes: measured once, kept, and measured again when what was kept is of no use."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

import backends.__main__ as command
from backends.mlx import tune
from ports.common import gradients
from tests.contract.cases import session

KEY = gradients.depthwise(7, 1, 12)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A new machine: no cache, nothing chosen in this process."""
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path))
    monkeypatch.setattr(gradients, "CHOSEN", dict(gradients.DEFAULTS))
    tune.choice_of.cache_clear()
    yield
    tune.choice_of.cache_clear()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """On what says it is a GPU, on which our gradient of 7 x 7 kernels is faster; the budgets of all measurements."""
    budgets: list[float] = []

    def measure(budget: float, keys: Collection[str]) -> tune.Seconds:
        budgets.append(budget)
        return {key: {gradients.LIBRARY: 2.0 if key == KEY else 1.0, gradients.OURS: 1.5} for key in keys}

    monkeypatch.setattr(tune, "on_gpu", lambda: True)
    monkeypatch.setattr(tune, "measure", measure)
    return budgets


def test_a_cpu_takes_what_is_known_and_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "measure", lambda *_: pytest.fail("a CPU measures only when asked to"))
    told = session("mlx").describe()["gradients"]
    assert told == {**gradients.DEFAULTS, "from": "known of CPUs"}
    assert not tune.cache_file().exists()


def test_a_gpu_measures_at_first_use_and_keeps_it(measured: list[float]) -> None:
    first = tune.choose()
    assert first.ways == {**gradients.DEFAULTS, KEY: gradients.OURS} == gradients.CHOSEN
    assert first.source == "measured now"
    tune.choice_of.cache_clear()
    again = tune.choose()
    assert again == (first.ways, str(tune.cache_file()))
    assert len(measured) == 1
    assert measured[0] <= 2


def test_what_the_budget_left_out_is_measured_at_the_next_start(measured: list[float]) -> None:
    file, other = tune.cache_file(), gradients.depthwise(3, 2, 16)
    tune.write(file, {other: {gradients.LIBRARY: 3.0, gradients.OURS: 2.0}, "older": {"library": 1, "ours": 2}})
    first = tune.choose()
    assert (first.ways[KEY], first.ways[other], first.source) == (gradients.OURS, gradients.OURS, "measured now")
    assert json.loads(file.read_text()).keys() == gradients.DEFAULTS.keys()
    tune.choice_of.cache_clear()
    assert tune.choose().source == str(file)
    assert len(measured) == 1


def test_each_device_has_a_choice_of_its_own(measured: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    of_the_cpu = tune.cache_file()
    gpu = of_the_cpu.with_name("gpu.json")
    tune.write(of_the_cpu, {KEY: {gradients.LIBRARY: 1.0, gradients.OURS: 2.0}})
    monkeypatch.setattr(tune, "cache_file", lambda: gpu)
    assert tune.choose().ways[KEY] == gradients.CHOSEN[KEY] == gradients.OURS
    monkeypatch.setattr(tune, "on_gpu", lambda: False)
    monkeypatch.setattr(tune, "cache_file", lambda: of_the_cpu)
    assert tune.choose().ways[KEY] == gradients.CHOSEN[KEY] == gradients.LIBRARY


@pytest.mark.parametrize("text", ["{", "[]", f'{{"{KEY}": {{"library": "fast"}}}}', f'{{"{KEY}": {{"library": 1}}}}'])
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
