"""The commands of guide pages, run in their order on tiny data, as a reader would type them.

A page is run in a folder that holds `DIR` (a few digits in class folders, with a labelled test split), `photos` and
the YAML file that the page shows. Trainings get the settings of `QUICK` besides, and those of `NAMED` where the page
names a model of real size. There is no hub.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.weights import hub
from tests.unit.test_docs import FOREIGN, ROOT, commands

PAGES = ("docs/guide/first_hour.md", "docs/guide/first_fine_tune.md")
PER_CLASS, CLASSES = 10, "147"
QUICK = """--train.epochs 1 --train.batch_size 8 --train.micro_batch null --data.workers 1 --auto_hours 1e-6
    --schedule.warmup_epochs 0 --mix.off_epochs 0 --augment.off_epochs 0 --folds.n_splits 2"""
NAMED = "--model test_convnext --weights none --data.image_size 32 --train.compile off"


@pytest.fixture
def place(all_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a page's commands are run."""
    counts: dict[str, int] = {}
    with (all_digits / "train.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            name, number = row["target"], counts.get(row["target"], 0)
            if name in CLASSES and number < PER_CLASS + 2:
                counts[name] = number + 1
                folder = tmp_path / "DIR" / ("train" if number < PER_CLASS else "test") / f"digit_{name}"
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(all_digits / "train" / row["ID"], folder)
    shutil.copytree(tmp_path / "DIR" / "test" / "digit_1", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    for name in ("is_reached", "is_cached"):
        monkeypatch.setattr(hub, name, lambda _: False)
    return tmp_path


def run(line: str) -> int:
    """The exit code of a command line, run in this process."""
    program, *words = shlex.split(line, comments=True)
    assert program == "python", line
    try:
        if words[0] == "-m":
            name = words[1]
            found = importlib.util.find_spec(name).submodule_search_locations
            return importlib.import_module(f"{name}.__main__" if found else name).main(words[2:]) or 0
        assert (ROOT / words[0]).exists(), line
        engine = words[0].removeprefix("train_").removesuffix(".py")
        named = shlex.split(NAMED) if {"--model", "--config"} & set(words) else []
        from training import cli

        return cli.main(engine, [*words[1:], *shlex.split(QUICK), *named])
    except SystemExit as stopped:  # of --help, --print_config and the like
        return int(stopped.code or 0)


def shown(page: Path) -> Iterator[str]:
    """The commands of a page that are Tandem's own; `make` is for the demo and the installation, which CI runs."""
    for line in commands(page):
        if line.split()[0] not in ("make", *FOREIGN):
            yield line


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_one_after_the_other(page: str, place: Path, capsys) -> None:
    text = (ROOT / page).read_text()
    for block in re.findall(r"^```yaml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        (place / "my.yaml").write_text(block)
    for line in shown(ROOT / page):
        code = run(line)
        assert code == 0, f"{page}: {line}: exit code {code}: {capsys.readouterr().err}"
    assert (place / "runs" / "first" / "report.html").is_file()


def test_the_plan_of_the_first_hour_names_a_model_and_writes_nothing(place: Path, capsys) -> None:
    plan = next(line for line in shown(ROOT / PAGES[0]) if "--dry_run" in line)
    assert run(plan) == 0
    out = capsys.readouterr().out
    assert "model tf_efficientnet_lite0 at 64 pixels" in out and "nothing was written" in out
    assert sorted(path.name for path in place.iterdir()) == ["DIR", "photos"]
